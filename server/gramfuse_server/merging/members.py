"""The cohort of a job as its rows keep it."""

from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.merging.cohort import CohortMember
from gramfuse_server.standing import standing_contributions
from gramfuse_server.tables import JobContributionRow, JobRow
from gramfuse_shared.contract.recipe import Overridable, Recipe

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


def outdated_members(session: Session, job: JobRow) -> tuple[str, ...]:
    """Name the organizations whose contribution a merge submitted now would not take as this job did, in order.

    Theirs was replaced or withdrawn, or is of an earlier policy; where the recipe takes all, also whoever is new.
    """
    taken = {member.organization: member.contribution for member in cohort_of(session, job)}
    standing = {one.organization: one.contribution for one in standing_contributions(session, job.project)}
    recipe = Recipe.parse(job.recipe)
    takes_all = not recipe.models and recipe.request is None
    asked = taken.keys() | standing.keys() if takes_all else taken.keys()
    return tuple(sorted(name for name in asked if taken.get(name) != standing.get(name)))
