"""Jobs, their logs and models as the API shows them."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import cast

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from gramfuse_server.merging.releases import release_of
from gramfuse_server.tables import (
    ContributionRow,
    JobContributionRow,
    JobLogRow,
    JobRow,
    ModelFileRow,
    ModelRow,
    TaskRow,
    UploadRow,
)
from gramfuse_shared.contract.diagnostics import JobDiagnostics, Layer
from gramfuse_shared.contract.http_api import Job, JobContribution, JobError, JobLayers, JobLogEntry, JobState, Model
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import NotFoundError

UNPUBLISHED_PROGRESS = 0.99
"""All bytes are read, the model is not published yet."""


def find_job(session: Session, project: str, job: str, *, lock: bool = False) -> JobRow:
    """Return a job of a project; raises NotFoundError."""
    row = session.get(JobRow, (project, job), with_for_update=lock or None)
    if row is None:
        msg = f"there is no job {job} in {project}"
        raise NotFoundError(msg)
    return row


def find_model(session: Session, project: str, model: str, *, lock: bool = False) -> ModelRow:
    """Return a model of a project, deleted ones too; raises NotFoundError."""
    row = session.get(ModelRow, (project, model), with_for_update=lock or None)
    if row is None:
        msg = f"there is no model {model} in {project}; a model bears the id of the job that made it"
        raise NotFoundError(msg)
    return row


def job_documents(session: Session, rows: Sequence[JobRow]) -> list[Job]:
    """Describe jobs, each with its cohort."""
    cohorts: dict[tuple[str, str], list[JobContribution]] = {(row.project, row.id): [] for row in rows}
    for member in session.scalars(
        select(JobContributionRow)
        .where(tuple_(JobContributionRow.project, JobContributionRow.job).in_(list(cohorts)))
        .order_by(JobContributionRow.organization)
    ):
        cohorts[member.project, member.job].append(
            JobContribution(organization=member.organization, contribution=member.contribution)
        )
    return [_job_document(row, cohorts[row.project, row.id]) for row in rows]


def diagnostics_document(session: Session, row: JobRow, organization: str | None) -> JobDiagnostics:
    """Describe the layers of a job's present attempt as an organization may see them: with its own distances alone."""
    tasks = session.scalars(
        select(TaskRow)
        .where(TaskRow.project == row.project, TaskRow.job == row.id, TaskRow.attempt == row.attempt)
        .order_by(TaskRow.number)
    ).all()
    entries = [entry for task in tasks for entry in json.loads(task.diagnostics or "[]")]
    return JobDiagnostics(
        project=row.project,
        job=row.id,
        attempt=row.attempt,
        complete=bool(tasks) and all(task.state == "succeeded" for task in tasks),
        layers=tuple(Layer.of_entry(entry, own=organization) for entry in entries),
    )


def log_entry(row: JobLogRow) -> JobLogEntry:
    """Describe a line of a job's history."""
    return JobLogEntry(sequence=row.sequence, at=row.at, attempt=row.attempt, message=row.message)


def model_documents(session: Session, rows: Sequence[ModelRow], now: datetime) -> list[Model]:
    """Describe models, each with its files, its receipt, its release, and who withdrew after it was published."""
    keys = [(row.project, row.id) for row in rows]
    files: dict[tuple[str, str], list[FileEntry]] = {key: [] for key in keys}
    for file in session.scalars(
        select(ModelFileRow)
        .where(tuple_(ModelFileRow.project, ModelFileRow.model).in_(keys))
        .order_by(ModelFileRow.position)
    ):
        files[file.project, file.model].append(FileEntry(name=file.name, bytes=file.bytes, sha256=file.sha256))
    withdrawn = _withdrawn_members(session, keys)
    receipts = {(row.project, row.id): SignedReceipt.parse(row.receipt) for row in rows}
    return [
        Model(
            id=row.id,
            project=row.project,
            created_at=row.created_at,
            bytes=row.bytes,
            files=tuple(files[row.project, row.id]),
            withdrawn_members=tuple(withdrawn[row.project, row.id]),
            deleted_at=row.deleted_at,
            release=release_of(session, row, receipts[row.project, row.id].receipt, now),
            receipt=receipts[row.project, row.id],
        )
        for row in rows
    ]


def _job_document(row: JobRow, cohort: Iterable[JobContribution]) -> Job:
    running = row.state == "running"
    read = row.done_bytes / row.total_bytes if row.total_bytes else 0.0
    left = row.total_bytes - row.done_bytes
    return Job(
        id=row.id,
        project=row.project,
        state=cast("JobState", row.state),
        stage=row.stage,
        attempt=row.attempt,
        progress=1.0 if row.state == "succeeded" else min(read, UNPUBLISHED_PROGRESS),
        done_tasks=row.done_tasks,
        total_tasks=row.total_tasks,
        rate=row.rate if running else None,
        estimate_seconds=left / row.rate if running and row.rate else None,
        layers=(
            None
            if row.solved_layers is None
            else JobLayers(solved=row.solved_layers, averaged=row.averaged_layers or 0)
        ),
        recipe=Recipe.parse(row.recipe),
        cohort=tuple(cohort),
        error=JobError(code=row.error_code, message=row.error_message or "") if row.error_code else None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _withdrawn_members(session: Session, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    withdrawn: dict[tuple[str, str], list[str]] = {key: [] for key in keys}
    for project, job, organization in session.execute(
        select(JobContributionRow.project, JobContributionRow.job, JobContributionRow.organization)
        .join(ContributionRow, ContributionRow.id == JobContributionRow.contribution)
        .join(UploadRow, UploadRow.id == ContributionRow.upload)
        .where(
            tuple_(JobContributionRow.project, JobContributionRow.job).in_(list(keys)),
            UploadRow.withdrawn_at.is_not(None),
        )
        .order_by(JobContributionRow.organization)
    ):
        withdrawn[project, job].append(organization)
    return withdrawn
