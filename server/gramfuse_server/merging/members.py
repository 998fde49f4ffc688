"""The cohort of a job as its rows keep it."""

from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.merging.cohort import CohortMember
from gramfuse_server.tables import JobContributionRow, JobRow
from gramfuse_shared.contract.recipe import Overridable

_WEIGHT: Final[TypeAdapter[Overridable]] = TypeAdapter(Overridable)


def write_weight(weight: Overridable) -> str:
    """Write a member's weight as JSON."""
    return _WEIGHT.dump_json(weight).decode()


def cohort_of(session: Session, job: JobRow) -> tuple[CohortMember, ...]:
    """Return a job's cohort by ascending contribution id."""
    rows = session.scalars(
        select(JobContributionRow)
        .where(JobContributionRow.project == job.project, JobContributionRow.job == job.id)
        .order_by(JobContributionRow.contribution)
    )
    return tuple(CohortMember(row.contribution, row.organization, _WEIGHT.validate_json(row.weight)) for row in rows)
