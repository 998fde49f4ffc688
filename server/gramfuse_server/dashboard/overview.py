"""What the page shows, read in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from gramfuse_server import operations
from gramfuse_server.audit_log import entry_of
from gramfuse_server.heartbeats import is_alive
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.merging.documents import job_documents
from gramfuse_server.settings import Settings
from gramfuse_server.tables import (
    AuditRow,
    ContributionRow,
    JobRow,
    ModelRow,
    ParticipantRow,
    ProjectRow,
    UploadRow,
    WorkerRow,
)
from gramfuse_shared.contract.http_api import AdminContribution, AuditEntry, Job, Overview, WorkerInfo

LIVE_JOBS: Final = 20
ENDED_JOBS: Final = 8
CONTRIBUTIONS: Final = 8
AUDIT_ENTRIES: Final = 8
PROJECTS: Final = 20
GONE_WORKERS: Final = timedelta(minutes=10)
"""A worker that ended, or fell silent, is shown for this long."""


@dataclass(frozen=True, slots=True)
class ProjectUse:
    """A project and the bytes that it holds."""

    id: str
    state: str
    participants: int
    bytes: int
    quota: int


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Everything on the page."""

    now: datetime
    overview: Overview
    live_jobs: Sequence[Job]
    ended_jobs: Sequence[Job]
    workers: Sequence[WorkerInfo]
    contributions: Sequence[AdminContribution]
    projects: Sequence[ProjectUse]
    audit: Sequence[AuditEntry]


def read_dashboard(session: Session, settings: Settings, now: datetime) -> Dashboard:
    """Read the page's content."""
    live = session.scalars(
        select(JobRow)
        .where(JobRow.state.in_(UNFINISHED))
        .order_by(JobRow.state.desc(), JobRow.created_at)
        .limit(LIVE_JOBS)
    ).all()
    ended = session.scalars(
        select(JobRow)
        .where(JobRow.state.not_in(UNFINISHED))
        .order_by(JobRow.finished_at.desc(), JobRow.id)
        .limit(ENDED_JOBS)
    ).all()
    workers = session.scalars(
        select(WorkerRow)
        .where(or_(WorkerRow.stopped_at.is_(None), WorkerRow.stopped_at > now - GONE_WORKERS))
        .where(WorkerRow.heartbeat_at > now - GONE_WORKERS)
        .order_by(WorkerRow.started_at.desc(), WorkerRow.id)
    ).all()
    workers = sorted(workers, key=lambda row: not is_alive(row, now, settings.worker_lease))
    newest = session.scalars(
        select(ContributionRow).order_by(ContributionRow.created_at.desc(), ContributionRow.id).limit(CONTRIBUTIONS)
    ).all()
    audit = session.scalars(select(AuditRow).order_by(AuditRow.sequence.desc()).limit(AUDIT_ENTRIES)).all()
    return Dashboard(
        now=now,
        overview=operations.overview(session, now, settings.worker_lease),
        live_jobs=job_documents(session, live),
        ended_jobs=job_documents(session, ended),
        workers=operations.worker_documents(session, workers, now, settings.worker_lease),
        contributions=operations.contribution_documents(session, newest, now),
        projects=_projects(session, settings),
        audit=[entry_of(row) for row in audit],
    )


def _projects(session: Session, settings: Settings) -> list[ProjectUse]:
    members = (
        select(func.count()).where(ParticipantRow.project == ProjectRow.id).correlate(ProjectRow).scalar_subquery()
    )
    uploads = (
        select(func.coalesce(func.sum(UploadRow.bytes), 0))
        .where(UploadRow.project == ProjectRow.id, UploadRow.deleted_at.is_(None))
        .correlate(ProjectRow)
        .scalar_subquery()
    )
    models = (
        select(func.coalesce(func.sum(ModelRow.bytes), 0))
        .where(ModelRow.project == ProjectRow.id, ModelRow.deleted_at.is_(None))
        .correlate(ProjectRow)
        .scalar_subquery()
    )
    rows = session.execute(
        select(
            ProjectRow.id,
            UploadRow.state,
            members.label("members"),
            uploads.label("uploads"),
            models.label("models"),
        )
        .join(UploadRow, UploadRow.id == ProjectRow.base_upload)
        .order_by(ProjectRow.created_at.desc(), ProjectRow.id)
        .limit(PROJECTS)
    )
    return [
        ProjectUse(
            id=row.id,
            state="ready" if row.state == "accepted" else row.state,
            participants=row.members,
            bytes=int(row.uploads) + int(row.models),
            quota=settings.project_quota_bytes,
        )
        for row in rows
    ]
