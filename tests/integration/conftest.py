"""The whole suite runs on both databases: `-m postgresql` or `-m "not postgresql"` selects one.

Every test has a database of its own, copied from one that was migrated once.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
import structlog
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import SecretStr

from gramfuse_server import jobs, logs, receipt_key, schema
from gramfuse_server.app import create_app
from gramfuse_server.database import Database, open_database
from gramfuse_server.settings import Settings
from gramfuse_server.sweeping import delete_spent_bytes
from support.client_world import Site
from support.postgres import CreateDatabase, postgres
from support.s3 import Store, require_weed, s3
from support.server_world import ManualClock, World

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in [name for name in os.environ if name.startswith("GRAMFUSE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _quiet_logs():
    """Logs are the suite's own, whatever commands a test runs in this process."""
    structlog.configure(
        processors=[structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)],
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "configure_logs", lambda _: None)
        yield


@pytest.fixture(scope="session", params=DATABASES)
def database_kind(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def create_postgresql() -> Iterator[CreateDatabase]:
    """Creates databases of a real PostgreSQL, started once and removed at the end."""
    with postgres() as create:
        yield create


@pytest.fixture(scope="session")
def new_empty_database_url(database_kind, tmp_path_factory, request) -> Callable[[], SecretStr]:
    """Makes the URL of a database without any table."""
    if database_kind == "sqlite":
        return lambda: SecretStr(f"sqlite:///{tmp_path_factory.mktemp('empty')}/gramfuse.sqlite")
    create = request.getfixturevalue("create_postgresql")
    return lambda: SecretStr(create())


@pytest.fixture(scope="session")
def copy_database(database_kind, tmp_path_factory, request) -> Callable[[SecretStr], SecretStr]:
    """Makes the URL of a copy of a database that nobody has open."""
    if database_kind == "sqlite":

        def copy(url: SecretStr) -> SecretStr:
            path = tmp_path_factory.mktemp("database") / "gramfuse.sqlite"
            shutil.copyfile(sqlalchemy.make_url(url.get_secret_value()).database, path)
            return SecretStr(f"sqlite:///{path}")

        return copy
    create = request.getfixturevalue("create_postgresql")
    return lambda url: SecretStr(create(template=sqlalchemy.make_url(url.get_secret_value()).database))


@pytest.fixture(scope="session")
def new_database_url(new_empty_database_url, copy_database, tmp_path_factory) -> Callable[[], SecretStr]:
    """Makes the URL of a fresh, migrated database."""
    migrated = new_empty_database_url()
    migrate(migrated, tmp_path_factory.mktemp("template"))
    return lambda: copy_database(migrated)


def migrate(url: SecretStr, home: Path) -> None:
    """Upgrade a database to the newest schema, DBOS' tables included."""
    database = open_database(url, create=True)
    schema.upgrade(database)
    jobs.migrate(Settings(server_home=home, database_url=url))
    close_for_copying(database)


def close_for_copying(database: Database) -> None:
    """Close a database so that its file, where it is one, is all of it."""
    with database.write.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.connection.driver_connection.rollback()
            connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """An event loop in a thread: tests are synchronous, the app is not."""
    with start_blocking_portal() as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def part_bytes() -> int:
    """So small that small files have several parts; where files are large, a module has a larger one of its own."""
    return 1024


@pytest.fixture
def settings(new_database_url, tmp_path, part_bytes) -> Settings:
    """Settings of a server with small parts."""
    made = Settings(server_home=tmp_path / "server", database_url=new_database_url(), part_bytes=part_bytes)
    receipt_key.create_key(made.receipt_key)
    return made


@pytest.fixture
def make_world(settings, clock, portal) -> Iterator[Callable[..., World]]:
    """Makes a running API with an operator, and what it takes to play organizations in it; settings can be changed."""
    made = []

    def make(**changes) -> World:
        made.append(World(create_app(settings.model_copy(update=changes), clock=clock), clock, portal))
        return made[-1]

    yield make
    for world in made:
        world.services.database.close()


@pytest.fixture
def world(make_world) -> World:
    return make_world()


@pytest.fixture
def acme(world, tmp_path) -> Site:
    return Site(world, "acme", "coordinator", tmp_path)


@pytest.fixture
def globex(world, tmp_path) -> Site:
    return Site(world, "globex", "participant", tmp_path)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Iterator[Store]:
    """A real S3 store."""
    require_weed()
    with s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


Beginning = Callable[[World, Settings], None]
"""What is played on a new server: organizations, projects, contributions, jobs."""


@dataclass(frozen=True)
class Kept:
    """What a server holds after a beginning; nobody has it open."""

    database: SecretStr
    home: Path
    tokens: dict[tuple[str | None, str], str]


@pytest.fixture(scope="session")
def keep(new_database_url, portal, tmp_path_factory) -> Callable[[Beginning], Kept]:
    """Plays a beginning, once for all tests that want it."""
    kept: dict[Beginning, Kept] = {}

    def play(begin: Beginning) -> Kept:
        if begin not in kept:
            made = Settings(
                server_home=tmp_path_factory.mktemp("kept"), database_url=new_database_url(), part_bytes=1024
            )
            receipt_key.create_key(made.receipt_key)
            world = World(create_app(made, clock=ManualClock()), ManualClock(), portal)
            begin(world, made)
            assert world.operator.get("/healthz").status_code == 200
            delete_spent_bytes(world.services.database, world.services.blobs, world.clock())
            close_for_copying(world.services.database)
            kept[begin] = Kept(made.database_url, made.server_home, dict(world._tokens))
        return kept[begin]

    return play


@pytest.fixture
def begun(keep, copy_database, portal, tmp_path) -> Iterator[Callable[[Beginning], tuple[World, Settings]]]:
    """Opens a copy of the server that a beginning was played on, an hour later; and says its settings."""
    opened = []

    def copy(begin: Beginning) -> tuple[World, Settings]:
        settings = copy_of(keep(begin), copy_database, tmp_path / "begun")
        opened.append(open_copy(keep(begin), settings, portal))
        return opened[-1], settings

    yield copy
    for world in opened:
        world.services.database.close()


def copy_of(kept: Kept, copy_database: Callable[[SecretStr], SecretStr], home: Path) -> Settings:
    """Copy a kept server; return the copy's settings."""
    shutil.copytree(kept.home, home)
    return Settings(server_home=home, database_url=copy_database(kept.database), part_bytes=1024)


def open_copy(kept: Kept, settings: Settings, portal: BlockingPortal) -> World:
    """Open a copy of a kept server, an hour later."""
    clock = ManualClock()
    clock.advance(hours=1)
    return World(create_app(settings, clock=clock), clock, portal, dict(kept.tokens))


@pytest.fixture
def open_copies(copy_database, portal, tmp_path) -> Callable[..., tuple[World, Settings]]:
    """Opens copies of a kept server, as many as are wanted, with settings changed; whoever opens one closes it."""
    numbers = itertools.count()

    def opened(kept: Kept, **changes) -> tuple[World, Settings]:
        made = copy_of(kept, copy_database, tmp_path / f"copy-{next(numbers)}").model_copy(update=changes)
        return open_copy(kept, made, portal), made

    return opened


@pytest.fixture(scope="session")
def ready_kept(keep) -> Kept:
    """A server with a project of three organizations whose contributions are accepted."""
    from support.worker_world import be_ready  # noqa: PLC0415 - torch, for those who need it

    return keep(be_ready)


@pytest.fixture
def ready_settings(ready_kept, copy_database, tmp_path) -> Settings:
    """Settings of a copy of the ready server."""
    return copy_of(ready_kept, copy_database, tmp_path / "ready")


@pytest.fixture
def ready(ready_kept, ready_settings, portal):
    """The ready server and a worker in this process, called by hand."""
    from support.worker_world import InProcessWorker  # noqa: PLC0415 - torch, for those who need it

    world = open_copy(ready_kept, ready_settings, portal)
    yield world, InProcessWorker(world, ready_settings)
    world.services.database.close()
