"""What the overview shows, read in one go."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import or_, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from gramfuse_server.audit_log import entry_of
from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.browser import NO_STORE
from gramfuse_server.dashboard.merges import live_jobs
from gramfuse_server.dashboard.sources import Sources
from gramfuse_server.database import reading
from gramfuse_server.heartbeats import is_alive
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.merging.documents import job_documents
from gramfuse_server.operations import counts
from gramfuse_server.operations.projects import contribution_documents, project_documents
from gramfuse_server.operations.throughput import throughput
from gramfuse_server.tables import AuditRow, ContributionRow, JobRow, ProjectRow, WorkerRow

LIVE_JOBS: Final = 20
ENDED_JOBS: Final = 8
CONTRIBUTIONS: Final = 8
AUDIT_ENTRIES: Final = 8
PROJECTS: Final = 20
GONE_WORKERS: Final = timedelta(minutes=10)
"""A worker that ended, or fell silent, is shown for this long."""


def read_overview(sources: Sources, _: Request, __: Caller) -> Mapping[str, Any]:
    """Read the page's content."""
    with reading(sources.database) as session:
        return _read(session, sources)


def send_throughput(sources: Sources, _: Request, __: Caller) -> Response:
    """Answer what the chart is drawn from: the JSON of /v1/admin/throughput."""
    with reading(sources.database) as session:
        document = throughput(session, sources.clock())
    return Response(document.model_dump_json(), media_type="application/json", headers=NO_STORE)


def _read(session: Session, sources: Sources) -> Mapping[str, Any]:
    now, settings = sources.clock(), sources.settings
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
    projects = session.scalars(
        select(ProjectRow).order_by(ProjectRow.created_at.desc(), ProjectRow.id).limit(PROJECTS)
    ).all()
    return {
        "overview": counts.overview(session, now, settings.worker_lease),
        "live_jobs": live_jobs(session, LIVE_JOBS),
        "ended_jobs": job_documents(session, ended),
        "workers": counts.worker_documents(session, workers, now, settings.worker_lease),
        "contributions": contribution_documents(session, newest, now),
        "projects": project_documents(session, projects, settings=settings, now=now),
        "audit": [entry_of(row) for row in audit],
        "throughput": throughput(session, now),
    }
