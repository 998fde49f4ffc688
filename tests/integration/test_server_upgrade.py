"""An upgrade of a server in use, as docs/operations.md has it: the revision before, with its rows, becomes this one."""

import pytest
import sqlalchemy
from alembic.script import ScriptDirectory

from gramfuse.verification import verify
from gramfuse_server import commands, jobs, schema
from gramfuse_server.app import create_app
from gramfuse_server.database import open_database, reading
from gramfuse_server.jobs import worker_configuration
from gramfuse_server.tables import ModelRow
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.shell import printing
from support.client_world import Site
from support.server_world import World
from support.worker_world import InProcessWorker, be_ready, contribute

PROJECT = "acme.tweets"
TABLE = {"sqlite": "workflow_status", "postgresql": "dbos.workflow_status"}


def begin_in_use(world, settings):
    """A merged model, a job that waits, an upload in parts, a token that was revoked."""
    be_ready(world, settings)
    submit(world, "merged")
    InProcessWorker(world, settings).run(PROJECT, "merged")
    submit(world, "waiting")
    contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 9)


def submit(world, job):
    answer = world.coordinator("acme").put(
        f"/v1/projects/{PROJECT}/jobs/{job}", json={"recipe": {"merge_method": "regmean"}}
    )
    assert answer.status_code == 201, answer.text


def revision_before_the_newest() -> str:
    script = ScriptDirectory.from_config(schema.configuration())
    return str(script.get_revision(schema.head()).down_revision)


@pytest.fixture
def at_shell(monkeypatch):
    """Runs `gramfuse-server …` on a server."""

    def run(settings, *arguments: str) -> None:
        monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(settings.server_home))
        monkeypatch.setenv("GRAMFUSE_DATABASE_URL", settings.database_url.get_secret_value())
        printing.reset_format()
        assert not commands.command().main([*arguments], standalone_mode=False)

    return run


def test_a_server_of_the_revision_before_is_upgraded_with_what_it_holds_and_goes_on(
    begun, at_shell, portal, tmp_path, database_kind
):
    world, settings = begun(begin_in_use)
    world.services.database.close()
    database = open_database(settings.database_url)
    schema.downgrade(database, revision_before_the_newest())
    with pytest.raises(ConfigurationError, match="gramfuse-server db upgrade"):
        schema.require_current(database)  # as API and workers do when they start
    database.close()

    at_shell(settings, "db", "upgrade")
    at_shell(settings, "verify", "--digests")
    upgraded = World(create_app(settings, clock=world.clock), world.clock, portal, dict(world._tokens))
    try:
        assert upgraded.client().get("/readyz").status_code == 200
        with reading(upgraded.services.database) as session:
            # what waits was enqueued for whoever has this number, whatever the version of the software
            versions = session.execute(
                sqlalchemy.text(f"SELECT DISTINCT application_version FROM {TABLE[database_kind]}")  # noqa: S608
            ).scalars()
            served = worker_configuration(settings, upgraded.services.database, "a worker")["application_version"]
            assert set(versions) == {served}
        worker = InProcessWorker(upgraded, settings)
        assert worker.inspect_all() == ["accepted"]
        worker.run(PROJECT, "waiting")
        with reading(upgraded.services.database) as session:
            assert session.get(ModelRow, (PROJECT, "waiting")) is not None
        globex = Site(upgraded, "globex", "participant", tmp_path)
        with globex.client() as client:
            for model in ("merged", "waiting"):
                verify(client.pull(PROJECT, model, tmp_path / model), home=globex.home)
    finally:
        upgraded.services.database.close()


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # one plain query
def test_an_older_version_refuses_a_newer_database_and_does_not_tell_to_upgrade_it(settings, monkeypatch):
    older = revision_before_the_newest()
    monkeypatch.setattr(schema, "head", lambda: older)
    database = open_database(settings.database_url)
    try:
        with pytest.raises(ConfigurationError, match="install the version that made it, or restore a backup"):
            schema.require_current(database)
    finally:
        database.close()


def test_the_number_that_work_is_enqueued_for_does_not_follow_from_the_code():
    """A computed one would strand what waits at every upgrade; raising it is a decision, told in the changelog."""
    assert jobs.APPLICATION_VERSION == "1"
