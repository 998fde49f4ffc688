"""`gramfuse-server doctor` on a real server, well and ill."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from gramfuse_server import audit_log, heartbeats, receipt_key, schema, tokens
from gramfuse_server.cli import main
from gramfuse_server.clock import system_clock
from gramfuse_server.database import open_database, transaction
from gramfuse_server.doctor.configuration import describe_database
from gramfuse_server.settings import Settings
from gramfuse_shared.version import __version__


@pytest.fixture
def home(tmp_path, monkeypatch, new_database_url) -> Path:
    """The home of a server as `init` leaves it, once its API has made the blobs' folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(home))
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", new_database_url().get_secret_value())
    monkeypatch.setenv(
        "GRAMFUSE_SHARD_BYTES", "1"
    )  # what the disk of this machine has free is not this suite's business
    (home / "blobs").mkdir(parents=True)
    receipt_key.create_key(home / "receipt-key.pem")
    return home


@pytest.fixture
def doctor(home, capsys):
    """Runs the command; returns its exit code and the findings by name."""

    def run() -> tuple[int, dict[str, dict[str, str]]]:
        capsys.readouterr()
        code = main(["doctor", "--format", "json"])
        printed = json.loads(capsys.readouterr().out)
        assert (printed["format"], printed["version"]) == ("gramfuse/doctor/1", __version__)
        return code or 0, {check["name"]: check for check in printed["checks"]}

    return run


@pytest.fixture
def database(home):
    opened = open_database(Settings().database_url)
    yield opened
    opened.close()


def let_operate(database, days):
    with transaction(database) as session:
        tokens.issue(session, audit_log.SHELL, role="operator", organization=None, days=days, now=system_clock())


def enter(database, name="w1", version=__version__):
    host = heartbeats.Host(name="here", device="cpu (1 thread)", memory_bytes=10**9, version=version)
    with transaction(database) as session:
        heartbeats.enter(session, name, host, system_clock())


@pytest.fixture
def plain_role(database, database_kind, monkeypatch):
    """Of the suite's PostgreSQL everybody is a superuser; within, the command's role is none."""
    if database_kind == "sqlite":
        return
    with database.write.begin() as connection:
        if not connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = 'plain'")):
            connection.execute(text("CREATE ROLE plain"))
            connection.execute(text("GRANT pg_read_all_data, pg_write_all_data TO plain"))
    url = database.write.url.update_query_dict({"options": "-c role=plain"})
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", url.render_as_string(hide_password=False))


@pytest.mark.usefixtures("plain_role")
def test_a_server_with_a_worker_is_well_in_every_respect(doctor, database, database_kind):
    enter(database)
    let_operate(database, 365)
    code, found = doctor()
    assert code == 0
    assert {check["verdict"] for name, check in found.items() if not name.startswith("disk")} == {"ok"}
    assert found["database"]["found"].startswith({"sqlite": "SQLite", "postgresql": "PostgreSQL"}[database_kind])
    assert found["workers"]["found"] == "1 alive: w1 on cpu (1 thread); 0 uploads or jobs wait"
    assert {"migrations", "job engine", "clock, database", "clock, blob store", "receipt key", "device"} <= found.keys()


def test_a_superuser_of_postgresql_is_warned_of(doctor, database_kind):
    if database_kind == "sqlite":
        pytest.skip("a file has no roles")
    code, found = doctor()
    assert (code, found["database"]["verdict"]) == (0, "warning")
    assert "superuser" in found["database"]["found"]
    assert "docs/deployment.md" in found["database"]["advice"]


def test_operators_who_can_soon_not_sign_in_any_more_are_warned(doctor, database):
    code, found = doctor()
    assert (code, found["operators"]["verdict"]) == (0, "warning")
    assert "token create --operator" in found["operators"]["advice"]
    let_operate(database, 10)
    assert doctor()[1]["operators"]["verdict"] == "warning"
    let_operate(database, 30)
    told = doctor()[1]["operators"]
    assert told["verdict"] == "ok"
    assert "2 valid tokens, the last until" in told["found"]


def test_without_workers_it_warns_and_with_waiting_work_it_fails(doctor, ready, monkeypatch):
    code, found = doctor()
    assert (code, found["workers"]["verdict"]) == (0, "warning")
    world, worker = ready
    body = {"recipe": {"merge_method": "linear"}}
    assert world.coordinator("acme").put("/v1/projects/acme.tweets/jobs/j", json=body).status_code == 201
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", worker.database.write.url.render_as_string(hide_password=False))
    code, found = doctor()
    assert (code, found["workers"]["verdict"]) == (1, "failed")
    assert found["workers"]["found"] == "none is alive, and 1 upload or job waits"


def test_an_older_schema_names_the_command(doctor, database):
    schema.downgrade(database, "-1")
    code, found = doctor()
    assert (code, found["migrations"]["verdict"]) == (1, "failed")
    assert "gramfuse-server db upgrade" in found["migrations"]["advice"]
    assert "workers" not in found


def test_missing_tables_of_the_job_engine_are_told(doctor, database, database_kind):
    table = "workflow_status" if database_kind == "sqlite" else "dbos.workflow_status"
    with database.write.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO elsewhere"))
    code, found = doctor()
    assert (code, found["job engine"]["verdict"]) == (1, "failed")


def test_a_database_that_does_not_answer_is_told_without_its_password_and_the_rest_is_checked(
    doctor, monkeypatch, capsys
):
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", "postgresql://user:hunter22@127.0.0.1:1/x")
    code, found = doctor()
    assert (code, found["database"]["verdict"]) == (1, "failed")
    assert "refused" in found["database"]["found"]
    assert "hunter22" not in json.dumps(found)
    assert found["blob store"]["verdict"] == found["receipt key"]["verdict"] == "ok"


def test_a_database_that_takes_no_writes_is_told(doctor, database, database_kind, monkeypatch):
    if database_kind == "sqlite":
        pytest.skip("a file that is read-only is a unit test of its own")
    url = database.write.url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", url.render_as_string(hide_password=False))
    _, found = doctor()
    assert (found["database"]["verdict"], "replica" in found["database"]["advice"]) == ("failed", True)


def test_a_database_of_no_kind_and_one_that_is_not_there_are_told(doctor, monkeypatch, tmp_path):
    for url in ("mysql://x/y", f"sqlite:///{tmp_path}/nowhere.sqlite"):
        monkeypatch.setenv("GRAMFUSE_DATABASE_URL", url)
        code, found = doctor()
        assert (code, found["database"]["verdict"]) == (1, "failed")
        assert "gramfuse-server init" in found["database"]["advice"]
    assert not (tmp_path / "nowhere.sqlite").exists()
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", "no url")
    assert describe_database(Settings()) == "unreadable"


def test_people_see_a_table_with_what_to_do_and_the_exit_code_says_that_something_failed(home, capsys):
    (home / "receipt-key.pem").chmod(0o644)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("failed   receipt key ")]
    assert [line for line in printed if line.endswith(f"→ run `chmod 600 {home / 'receipt-key.pem'}`")]
    assert printed[-1].startswith("1 failed, ")
