"""Which contribution of each organization counts: its newest that was ever accepted, unless that was withdrawn.

So a newer contribution replaces the older one for good: withdrawing it brings back nothing that its organization
believed replaced. The newest is the one sealed last, which is its organization's act; when a worker gets round to
accepting it is chance.
"""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.tables import ContributionRow, ProjectRow, UploadRow


@dataclass(frozen=True, slots=True)
class Standing:
    """An organization's contribution that counts in its project."""

    contribution: str
    organization: str


def standing_contributions(session: Session, project: str) -> list[Standing]:
    """List the contributions that count, at most one of each organization; one under an earlier policy does not."""
    rows = session.execute(
        select(ContributionRow.id, ContributionRow.organization, ContributionRow.policy_version, UploadRow.state)
        .join(UploadRow, UploadRow.id == ContributionRow.upload)
        .where(
            ContributionRow.project == project,
            UploadRow.state.in_(("accepted", "withdrawn")),
            UploadRow.decided_at.is_not(None),  # what was withdrawn before it was accepted never counted
        )
        .order_by(UploadRow.sealed_at, ContributionRow.id)
    ).all()
    current = session.scalar(select(ProjectRow.policy_version).where(ProjectRow.id == project))
    newest = {row.organization: row for row in rows}
    return [
        Standing(row.id, row.organization)
        for row in newest.values()
        if row.state == "accepted" and row.policy_version == current
    ]
