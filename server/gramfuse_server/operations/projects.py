"""Projects as operators see them: what they hold, who contributed, who has answered which request."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server.intake import contributions, projects
from gramfuse_server.requests.documents import request_documents
from gramfuse_server.settings import Settings
from gramfuse_server.tables import ContributionRow, ProjectRow, RequestRow
from gramfuse_shared.contract.operators import AdminAsked, AdminContribution, AdminProject, AdminRequest
from gramfuse_shared.errors import NotFoundError


def find_project(session: Session, project: str, *, lock: bool = False) -> ProjectRow:
    """Return a project, whoever takes part in it; `lock` holds it until the commit. Raises NotFoundError."""
    row = session.get(ProjectRow, project, with_for_update=lock or None)
    if row is None:
        msg = f"there is no project {project}"
        raise NotFoundError(msg)
    return row


def project_documents(
    session: Session, rows: Sequence[ProjectRow], *, settings: Settings, now: datetime
) -> list[AdminProject]:
    """Describe projects."""
    documents = projects.project_documents(session, rows, settings=settings, now=now)
    return [
        AdminProject(**document.model_dump(), quota_is_default=row.quota_bytes is None)
        for row, document in zip(rows, documents, strict=True)
    ]


def contribution_documents(session: Session, rows: Sequence[ContributionRow], now: datetime) -> list[AdminContribution]:
    """Describe contributions with their projects; reason and files stay their organizations' own."""
    documents = contributions.contribution_documents(session, rows, None, now)
    return [
        AdminContribution(**document.model_dump(exclude={"manifest"}), project=row.project)
        for document, row in zip(documents, rows, strict=True)
    ]


def admin_requests(session: Session, rows: Sequence[RequestRow], now: datetime) -> list[AdminRequest]:
    """Describe requests and who has answered; what was answered, scores too, stays the members'."""
    return [
        AdminRequest(
            id=document.id,
            project=document.project,
            kind=document.kind,
            models=document.models,
            state=document.state,
            reason=document.reason,
            created_at=document.created_at,
            deadline=document.deadline,
            asked=tuple(AdminAsked(organization=place.organization, state=place.state) for place in document.asked),
        )
        for document in request_documents(session, rows, None, now)
    ]
