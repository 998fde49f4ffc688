"""What must hold of a server whatever happened: one model a job, every file whole, the log unbroken, nothing stuck."""

import collections
import contextlib
from pathlib import Path

import sqlalchemy
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import open_blobs
from gramfuse_server.database import Database, open_database, reading
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.settings import Settings
from gramfuse_server.tables import AttemptRow, AuditRow, JobRow, ModelRow, TaskRow, WorkerRow
from gramfuse_server.verifying.checks import verify_contents
from gramfuse_shared.digest import sha256_hex_of_chunks
from support.deployment import Deployment, wait_until


def settings_of(deployment: Deployment) -> Settings:
    """The settings that a deployment's processes read from their environment."""
    chosen = {name: value for name, value in deployment.settings.items() if name in Settings.model_fields}
    if deployment.database_url is not None:
        chosen["database_url"] = SecretStr(deployment.database_url)
    return Settings(server_home=deployment.folder / "server", **chosen)


def open_database_of(deployment: Deployment) -> Database:
    """Open a deployment's database; close it."""
    return open_database(settings_of(deployment).database_url)


def require_sound(deployment: Deployment) -> None:
    """Require it of a server that is at rest, or will be in a few seconds."""
    settings, database = settings_of(deployment), open_database_of(deployment)
    try:
        wait_until(lambda: not _unfinished(database), seconds=60, what=f"rest from {_unfinished(database)}")
        verified = verify_contents(settings, database, digests=True)
        assert {finding.name: finding.found for finding in verified.findings if finding.verdict == "failed"} == {}
        with reading(database) as session:
            _require_one_model_a_job(session)
        require_whole_blobs(settings.blobs)
    finally:
        database.close()


def require_whole_blobs(url: str) -> None:
    """Every blob that goes by its digest has it: nothing half-written bears a final name, or is shown by the store."""
    blobs = open_blobs(url)
    keys = list(blobs.keys("sha256/"))
    assert keys
    for key in keys:
        with contextlib.suppress(FileNotFoundError):  # swept meanwhile
            assert sha256_hex_of_chunks(blobs.chunks(key)) == key.removeprefix("sha256/")


def _unfinished(database: Database) -> list[str]:
    """Jobs, attempts and workflows that are not at their end."""
    with reading(database) as session:
        jobs = [f"job {row.id}" for row in session.scalars(select(JobRow).where(JobRow.state.in_(UNFINISHED)))]
        rows = session.scalars(select(AttemptRow).where(AttemptRow.state.in_(UNFINISHED)))
        schema = None if session.get_bind().dialect.name == "sqlite" else "dbos"
        name, status = sqlalchemy.column("workflow_uuid"), sqlalchemy.column("status")
        workflows = sqlalchemy.table("workflow_status", name, status, schema=schema)
        at_work = session.scalars(select(workflows.c.workflow_uuid).where(status.in_(("ENQUEUED", "PENDING"))))
        return [*jobs, *(f"attempt {row.workflow}" for row in rows), *at_work]


def _require_one_model_a_job(session: Session) -> None:
    succeeded = {
        (row.project, row.id, row.attempt) for row in session.scalars(select(JobRow)) if row.state == "succeeded"
    }
    published = session.scalars(select(AuditRow).where(AuditRow.action == "model.publish"))
    counts = collections.Counter(row.subject for row in published)
    assert counts == {f"{project}/{job}": 1 for project, job, _ in succeeded}
    assert {(row.project, row.id, row.attempt) for row in session.scalars(select(ModelRow))} == succeeded
    for project, job, attempt in succeeded:
        mine = (TaskRow.project == project, TaskRow.job == job, TaskRow.attempt == attempt)
        assert {row.state for row in session.scalars(select(TaskRow).where(*mine))} == {"succeeded"}


def tasks_of(database: Database, job: str) -> dict[int, TaskRow]:
    """The tasks of a job's attempts, by number."""
    with reading(database) as session:
        return {row.number: row for row in session.scalars(select(TaskRow).where(TaskRow.job == job))}


def workers_of(database: Database) -> dict[str, WorkerRow]:
    """Everybody who ever worked, by name."""
    with reading(database) as session:
        return {row.id: row for row in session.scalars(select(WorkerRow))}


def is_locked(path: Path) -> bool:
    """Whether somebody is writing to a SQLite file in this moment."""
    import sqlite3  # noqa: PLC0415 - for this question alone

    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False
