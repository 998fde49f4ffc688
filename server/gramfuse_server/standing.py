"""Which contribution of each organization counts: its newest that was ever accepted, unless that was withdrawn.

So a newer contribution replaces the older one for good: withdrawing it brings back nothing that its organization
believed replaced.
"""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.tables import ContributionRow, UploadRow


@dataclass(frozen=True, slots=True)
class Standing:
    """An organization's contribution that counts in its project."""

    contribution: str
    organization: str
    policy_version: int


def standing_contributions(session: Session, project: str) -> list[Standing]:
    """List the contributions that count, at most one of each organization, whatever policy they were made under."""
    rows = session.execute(
        select(
            ContributionRow.id,
            ContributionRow.organization,
            ContributionRow.policy_version,
            UploadRow.decided_at,
            UploadRow.state,
        )
        .join(UploadRow, UploadRow.id == ContributionRow.upload)
        .where(
            ContributionRow.project == project,
            UploadRow.state.in_(("accepted", "withdrawn")),
            UploadRow.decided_at.is_not(None),  # what was withdrawn before it was accepted never counted
        )
        .order_by(UploadRow.decided_at, ContributionRow.id)
    ).all()
    newest = {row.organization: row for row in rows}
    return [
        Standing(row.id, row.organization, row.policy_version) for row in newest.values() if row.state == "accepted"
    ]
