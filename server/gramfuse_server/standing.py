"""Which contribution of each organization counts: its newest that was ever accepted, unless that was withdrawn.

So a newer contribution replaces the older one for good: withdrawing it brings back nothing that its organization
believed replaced. The newest is the one sealed last, which is its organization's act; when a worker gets round to
accepting it is chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.tables import ContributionRow, ProjectRow, UploadRow
from gramfuse_shared.contract.http_api import PassedOver


@dataclass(frozen=True, slots=True)
class Standing:
    """An organization's contribution that counts in its project."""

    contribution: str
    organization: str


@dataclass(frozen=True, slots=True)
class Weighed:
    """The contributions of a project that count, and why each other accepted one does not."""

    standing: tuple[Standing, ...]
    passed_over: Mapping[str, PassedOver]


def standing_contributions(session: Session, project: str) -> tuple[Standing, ...]:
    """List the contributions that count, at most one of each organization; one under an earlier policy does not."""
    return weigh(session, project).standing


def weigh(session: Session, project: str) -> Weighed:
    """Tell which accepted contributions of a project count, and why the others do not."""
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
    newest = {row.organization: row.id for row in rows}
    accepted = [row for row in rows if row.state == "accepted"]
    passed_over: dict[str, PassedOver] = {
        row.id: "policy" if row.id == newest[row.organization] else "newer"
        for row in accepted
        if row.id != newest[row.organization] or row.policy_version != current
    }
    standing = tuple(Standing(row.id, row.organization) for row in accepted if row.id not in passed_over)
    return Weighed(standing, passed_over)
