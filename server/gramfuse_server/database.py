"""Engines and transactions on SQLite and PostgreSQL. Nobody commits but `transaction`, and no transaction spans I/O."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from gramfuse_server.settings import make_folder
from gramfuse_server.tables import Row
from gramfuse_shared.errors import ConfigurationError

BUSY_TIMEOUT_SECONDS: Final = 30
POOL_CONNECTIONS: Final = 20


@dataclass(frozen=True, slots=True)
class Database:
    """One database, opened for writing and for reading; on PostgreSQL both are the same engine."""

    write: Engine
    read: Engine

    def close(self) -> None:
        """Close all connections that are not in use."""
        self.write.dispose()
        self.read.dispose()


def database_url(url: SecretStr) -> URL:
    """Parse the setting; PostgreSQL is spoken by psycopg.

    Raises:
        ConfigurationError: not a URL, or of another database.
    """
    try:
        parsed = make_url(url.get_secret_value())
    except ArgumentError as error:
        msg = (
            "GRAMFUSE_DATABASE_URL is not a database URL; examples: sqlite:////var/lib/gramfuse.sqlite, postgresql://…"
        )
        raise ConfigurationError(msg) from error
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite" and parsed.database not in {None, "", ":memory:"}:
        return parsed.set(drivername="sqlite+pysqlite")
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    msg = f"GRAMFUSE_DATABASE_URL names {backend!r}; a file of SQLite or a PostgreSQL server is needed"
    raise ConfigurationError(msg)


def open_database(url: SecretStr, *, create: bool = False) -> Database:
    """Open the database; the first connection is made by the first transaction.

    Raises:
        ConfigurationError: there is no such SQLite file, and `create` does not say that one may be made.
    """
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite":
        _require_file(Path(parsed.database or "").absolute(), create=create)
        return Database(write=_sqlite_engine(parsed, "BEGIN IMMEDIATE"), read=_sqlite_engine(parsed, "BEGIN"))
    engine = create_engine(parsed, pool_size=POOL_CONNECTIONS, max_overflow=POOL_CONNECTIONS, pool_pre_ping=True)
    return Database(write=engine, read=engine)


def require_answer(database: Database) -> None:
    """Connect once.

    Raises:
        ConfigurationError: the database does not answer, or the file is none of SQLite's.
    """
    try:
        database.read.connect().close()
    except DBAPIError as error:
        place, reason = database.read.url.render_as_string(hide_password=True), str(error.orig).strip()
        msg = f"the database {place} does not answer: {reason.partition(chr(10))[0]} (GRAMFUSE_DATABASE_URL)"
        raise ConfigurationError(msg) from error


@contextmanager
def transaction(database: Database) -> Iterator[Session]:
    """Yield a session that commits on a clean exit and rolls back otherwise."""
    with Session(database.write, expire_on_commit=False) as session, _unshared_after_errors(session), session.begin():
        yield session


@contextmanager
def reading(database: Database) -> Iterator[Session]:
    """Yield a session for queries only; on SQLite it waits for no writer."""
    session = Session(database.read, expire_on_commit=False, autoflush=False)
    with session, _unshared_after_errors(session):
        yield session


@contextmanager
def snapshot(database: Database) -> Iterator[Session]:
    """Yield a session whose queries all see the same moment, that of the first, whatever others commit meanwhile.

    Else what several queries say together is true of no moment: PostgreSQL shows each what is there as it begins.
    """
    with reading(database) as session:
        if session.get_bind().dialect.name == "postgresql":
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield session


@contextmanager
def _unshared_after_errors(session: Session) -> Iterator[None]:
    """On an error, close SQLite's connection instead of giving it back.

    The error's traceback may hold a result that was not read to its end. SQLite then keeps the snapshot of its
    statement through the rollback, and whoever is given this connection next reads the past: revoked tokens work.
    """
    try:
        yield
    except BaseException:
        if session.get_bind().dialect.name == "sqlite":
            session.invalidate()
        raise


def insert_if_absent(session: Session, row: type[Row], values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key exists; tell whether it was inserted. Safe against a concurrent insert."""
    table = row.__table__
    if not isinstance(table, Table):  # pragma: no cover - every Row of ours is a table
        msg = f"{row.__name__} is not a table"
        raise TypeError(msg)
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    key = next(iter(table.primary_key.columns))
    added = session.execute(insert(table).values(**values).on_conflict_do_nothing().returning(key))
    return added.first() is not None


def _require_file(path: Path, *, create: bool) -> None:
    if create:
        make_folder(path.parent, "GRAMFUSE_SERVER_HOME or GRAMFUSE_DATABASE_URL")
    elif not path.exists():  # SQLite would make an empty one
        msg = (
            f"there is no database {path}; `gramfuse-server init` makes one. Its place is GRAMFUSE_DATABASE_URL, else "
            "the folder GRAMFUSE_SERVER_HOME, else .gramfuse-server in the folder that the command runs in"
        )
        raise ConfigurationError(msg)


def _sqlite_engine(url: URL, begin: str) -> Engine:
    engine = create_engine(
        url,
        # isolation_level=None: the driver begins nothing by itself, the event below does
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        pool_size=POOL_CONNECTIONS,
        max_overflow=POOL_CONNECTIONS,
    )

    def prepare(connection: Any, _: ConnectionPoolEntry) -> None:  # noqa: ANN401 - sqlite3's own connection
        for pragma in (f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}", "journal_mode = WAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    def start(connection: Connection) -> None:
        # a writer takes the lock at once: read-then-write under a plain BEGIN fails or loses updates
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", start)
    return engine
