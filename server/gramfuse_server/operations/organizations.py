"""Organizations as operators see them: which tokens they have, where they take part, when they were last heard of."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from gramfuse_server.auth import is_valid
from gramfuse_server.tables import AuditRow, OrganizationRow, ParticipantRow, ProjectRow, TokenRow
from gramfuse_shared.contract.operators import AdminOrganization


def organization_documents(session: Session, rows: Sequence[OrganizationRow], now: datetime) -> list[AdminOrganization]:
    """Describe organizations, in one query for each of what is told of them."""
    names = [row.name for row in rows]
    tokens: dict[str, list[datetime | None]] = {name: [] for name in names}
    for token in session.scalars(select(TokenRow).where(TokenRow.organization.in_(names))):
        if token.organization is not None and is_valid(token, now):
            tokens[token.organization].append(token.expires_at)
    places = (
        select(ParticipantRow.organization, func.count().label("total"))
        .join(ProjectRow, ProjectRow.id == ParticipantRow.project)
        .where(ParticipantRow.organization.in_(names), ProjectRow.deleted_at.is_(None))
    )
    projects = {row.organization: row.total for row in session.execute(places.group_by(ParticipantRow.organization))}
    newest = select(AuditRow.organization, func.max(AuditRow.at).label("last")).where(AuditRow.organization.in_(names))
    seen = {row.organization: row.last for row in session.execute(newest.group_by(AuditRow.organization))}
    return [
        AdminOrganization(
            name=row.name,
            created_at=row.created_at,
            valid_tokens=len(tokens[row.name]),
            tokens_end_at=_last(tokens[row.name]),
            projects=projects.get(row.name, 0),
            last_seen_at=seen.get(row.name),
        )
        for row in rows
    ]


def _last(ends: Sequence[datetime | None]) -> datetime | None:
    """When the last of some tokens ends; None where one never does, and of none."""
    moments = [end for end in ends if end is not None]
    return max(moments) if moments and len(moments) == len(ends) else None
