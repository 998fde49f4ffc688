"""Engines and transactions on SQLite and PostgreSQL. Nobody commits but `transaction`, and no transaction spans I/O."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from sqlalchemy import Connection, Dialect, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from gramfuse_server.settings import make_folder
from gramfuse_server.tables import Row
from gramfuse_shared.errors import ConfigurationError

BUSY_TIMEOUT_SECONDS: Final = 30
POOL_CONNECTIONS: Final = 20
IDLE_IN_TRANSACTION_SECONDS: Final = 10
"""After which PostgreSQL ends a transaction whose process stands still, so that what it locked is free again."""
_OPTIONS: Final[Mapping[str, str]] = {
    "client_encoding": "utf8",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "5",
    "tcp_user_timeout": "15000",
}
"""libpq's, unless the URL has its own. By those of time a server that went without a word is noticed in 15 s, not in
15 minutes."""

_SQLITE_OUTAGES: Final = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL"})
_POSTGRESQL_OUTAGES: Final = ("08", "40", "53", "57")
"""Classes of its codes: connection, rollback by a deadlock, resources, intervention by its operator."""
_QUERY_CANCELLED: Final = "57014"
_IDLE_IN_TRANSACTION: Final = "25P03"
_NOT_ENCODED: Final = (
    "GRAMFUSE_DATABASE_URL cannot be told apart into its parts: its password holds @, / or another sign that has to be "
    "percent-encoded (@ as %40, / as %2F), or its port is no number"
)
_DISK_FULL: Final = frozenset({"SQLITE_FULL", "53100"})


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
        ConfigurationError: not a URL, or of another database; nothing of what may be a password is in the message.
    """
    try:
        parsed = make_url(url.get_secret_value())
    except ValueError:  # what stands in the place of the port is no number: it may be the end of a password
        raise ConfigurationError(_NOT_ENCODED) from None
    except ArgumentError as error:
        msg = (
            "GRAMFUSE_DATABASE_URL is not a database URL; examples: sqlite:////var/lib/gramfuse.sqlite, postgresql://…"
        )
        raise ConfigurationError(msg) from error
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite" and parsed.database not in {None, "", ":memory:"}:
        return parsed.set(drivername="sqlite+pysqlite")
    if backend in {"postgresql", "postgres"}:
        _require_encoded(url.get_secret_value())
        return parsed.set(drivername="postgresql+psycopg")
    msg = f"GRAMFUSE_DATABASE_URL names {backend!r}; a file of SQLite or a PostgreSQL server is needed"
    raise ConfigurationError(msg)


def _require_encoded(url: str) -> None:
    """Require that a password ends where it seems to: behind an `@` in it its rest would pass for host and database."""
    place, _, options = url.partition("://")[2].partition("?")
    cut_off = "@" in place and any("@" in option and "=" not in option for option in options.split("&"))
    if place.count("@") > 1 or cut_off:
        raise ConfigurationError(_NOT_ENCODED)


def open_database(url: SecretStr, *, create: bool = False) -> Database:
    """Open the database; the first connection is made by the first transaction.

    Raises:
        ConfigurationError: there is no such SQLite file, and `create` does not say that one may be made.
    """
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite":
        _require_file(Path(parsed.database or "").absolute(), create=create)
        return Database(write=_sqlite_engine(parsed, "BEGIN IMMEDIATE"), read=_sqlite_engine(parsed, "BEGIN"))
    engine = create_engine(
        parsed,
        connect_args={name: value for name, value in _OPTIONS.items() if name not in parsed.query},
        pool_size=POOL_CONNECTIONS,
        max_overflow=POOL_CONNECTIONS,
        pool_pre_ping=True,
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _bound_idle_transactions)
    return Database(write=engine, read=engine)


def require_answer(database: Database) -> None:
    """Connect once.

    Raises:
        ConfigurationError: the database does not answer, the file is none of SQLite's, or its encoding is not UTF-8.
    """
    place = database.read.url.render_as_string(hide_password=True)
    try:
        with database.read.connect() as connection:
            encoding = connection.scalar(text("SHOW server_encoding")) if database.read.name == "postgresql" else "UTF8"
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        msg = f"the database {place} does not answer: {reason} (GRAMFUSE_DATABASE_URL)"
        raise ConfigurationError(msg) from error
    if encoding != "UTF8":
        msg = (
            f"the database {place} is encoded in {encoding}, and UTF8 is needed: make another with "
            "`createdb --encoding=UTF8 --template=template0 NAME` and name it in GRAMFUSE_DATABASE_URL"
        )
        raise ConfigurationError(msg)


def is_outage(error: BaseException) -> bool:
    """Tell whether the database is away, locked or full, so that the same work may succeed later."""
    if isinstance(error, NoConnectionError):  # no connection became free
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = _code(error)
    if error.connection_invalidated or code == _IDLE_IN_TRANSACTION:
        return True
    if code is None:  # PostgreSQL's errors have one; without it nobody answered
        return isinstance(error, OperationalError)
    return code in _SQLITE_OUTAGES or (code.startswith(_POSTGRESQL_OUTAGES) and code != _QUERY_CANCELLED)


def is_full(error: BaseException) -> bool:
    """Tell whether the database's disk is full."""
    return isinstance(error, DBAPIError) and _code(error) in _DISK_FULL


def _code(error: DBAPIError) -> str | None:
    """SQLite's name of the error, without what comes behind the first two words, or PostgreSQL's code."""
    name: str | None = getattr(error.orig, "sqlite_errorname", None)
    return getattr(error.orig, "sqlstate", None) if name is None else "_".join(name.split("_")[:2])


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


def _connect(dialect: Dialect, _: ConnectionPoolEntry, arguments: list[Any], options: dict[str, Any]) -> Any:  # noqa: ANN401 - psycopg's own connection
    """Connect as the dialect does; say of every failure by its code that it is one of connecting.

    psycopg gives none where nobody listens, or where a name is unknown, as while a container restarts. DBOS repeats
    what failed by a code that says connection, and gives a workflow up otherwise.
    """
    import psycopg  # noqa: PLC0415 - for PostgreSQL alone

    try:
        return dialect.connect(*arguments, **options)
    except psycopg.OperationalError as error:
        if error.sqlstate is not None:
            raise
        raise psycopg.errors.SqlclientUnableToEstablishSqlconnection(str(error)) from error


def _bound_idle_transactions(connection: Any, _: ConnectionPoolEntry) -> None:  # noqa: ANN401 - psycopg's own connection
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_SECONDS}s'")
    connection.commit()  # the pool rolls back what is not


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
