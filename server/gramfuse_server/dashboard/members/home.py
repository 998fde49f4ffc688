"""What an organization is shown first: what waits for it, its projects, and the jobs that run in them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request

from gramfuse_server.auth import Caller, visible_projects
from gramfuse_server.dashboard.members.standing import memberships
from gramfuse_server.dashboard.merges import live_jobs
from gramfuse_server.dashboard.sources import Sources
from gramfuse_server.database import reading
from gramfuse_server.requests.documents import request_documents
from gramfuse_server.tables import AskedRow, JobRow, ProjectRow, RequestRow
from gramfuse_shared.contract.requests import RequestInfo

PROJECTS: Final = 20
LIVE_JOBS: Final = 10
AWAITED: Final = 20


def read_home(sources: Sources, _: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the page's content."""
    now, organization = sources.clock(), caller.require_organization()
    living = visible_projects(caller).where(ProjectRow.deleted_at.is_(None))
    newest = living.order_by(ProjectRow.created_at.desc(), ProjectRow.id).limit(PROJECTS)
    mine = visible_projects(caller).with_only_columns(ProjectRow.id)
    with reading(sources.database) as session:
        return {
            "memberships": memberships(
                session, organization, session.scalars(newest).all(), settings=sources.settings, now=now
            ),
            "awaited": _awaited(session, organization, now),
            "live_jobs": live_jobs(session, LIVE_JOBS, JobRow.project.in_(mine)),
        }


def _awaited(session: Session, organization: str, now: datetime) -> list[RequestInfo]:
    """Return the open requests that the organization has not answered, the most urgent first."""
    rows = session.scalars(
        select(RequestRow)
        .join(AskedRow, (AskedRow.project == RequestRow.project) & (AskedRow.request == RequestRow.id))
        .where(
            AskedRow.organization == organization,
            AskedRow.answer.is_(None),
            RequestRow.cancelled_at.is_(None),
            RequestRow.deadline > now,
        )
        .order_by(RequestRow.deadline, RequestRow.project, RequestRow.id)
        .limit(AWAITED)
    ).all()
    return [request for request in request_documents(session, rows, organization, now) if request.state == "open"]
