"""How an organization stands in its projects: what it accepted, and which of its contributions is to be spoken of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.intake.contributions import contribution_documents
from gramfuse_server.intake.projects import project_documents
from gramfuse_server.settings import Settings
from gramfuse_server.tables import ContributionRow, ProjectRow
from gramfuse_shared.contract.http_api import Contribution, Participant, Project
from gramfuse_shared.reporting.contributions import spoken_of


@dataclass(frozen=True, slots=True)
class Membership:
    """A project as one of its organizations stands in it."""

    project: Project
    member: Participant
    contribution: Contribution | None
    """The one that says how far it is."""

    @property
    def joined(self) -> bool:
        """Whether the current policy is accepted."""
        accepted = self.member.accepted_policy
        return accepted is not None and accepted.version == self.project.policy.version

    @property
    def refused(self) -> bool:
        """Whether what it sent came to nothing, and nothing of its counts."""
        return self.contribution is not None and self.contribution.state in {"rejected", "expired"}

    @property
    def outdated(self) -> bool:
        """Whether what it sent was made under an earlier policy, so that it has to be sent again."""
        return self.contribution is not None and self.contribution.passed_over == "policy"


def memberships(
    session: Session, organization: str, rows: Sequence[ProjectRow], *, settings: Settings, now: datetime
) -> list[Membership]:
    """Tell how an organization stands in projects that it takes part in."""
    own = session.scalars(
        select(ContributionRow)
        .where(ContributionRow.project.in_([row.id for row in rows]), ContributionRow.organization == organization)
        .order_by(ContributionRow.created_at, ContributionRow.id)
    ).all()
    sent: dict[str, list[Contribution]] = {}
    for row, document in zip(own, contribution_documents(session, own, organization, now), strict=True):
        sent.setdefault(row.project, []).append(document)
    return [
        Membership(
            project=project,
            member=next(member for member in project.participants if member.organization == organization),
            contribution=spoken_of(sent.get(project.id, ()), project.policy.version),
        )
        for project in project_documents(session, rows, settings=settings, now=now)
    ]
