"""Sessions of secure sums, planned from contributions' manifests; and the cohort of a job that merges one's sum."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.intake.projects import base_of
from gramfuse_server.intake.sealing import read_header
from gramfuse_server.merging.cohort import CohortMember
from gramfuse_server.requests.documents import accepted_answers, find_request, progress
from gramfuse_server.requests.kept_words import require_words
from gramfuse_server.requests.sessions import (
    require_standing,
    session_of,
    shown_in,
    stage_of_request,
    summed_by,
)
from gramfuse_server.tables import AskedRow, ContributionRow, ParticipantRow, ProjectRow, RequestRow
from gramfuse_shared.contract.manifest import ContributionManifest
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.scales_file import parse_scales_metadata
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import RecipeInvalidError, StateError
from gramfuse_shared.secure.answer_planning import plan_answer_session
from gramfuse_shared.secure.planning import plan_session


def plan_secure_session(
    session: Session,
    project: ProjectRow,
    identifier: str,
    recipe: Recipe,
    *,
    decide_cohort: Callable[[Recipe], Sequence[CohortMember]],
    scaled_taps: Collection[str],
) -> SessionManifest:
    """Plan what a session sums, of whom, with how many bits.

    Args:
        session: the database.
        project: whose contributions they are.
        identifier: the id of the session's first request.
        recipe: the merge; names contributions by their organizations.
        decide_cohort: finds the contributions, if the policy and the releases before allow their merge.
        scaled_taps: the taps that the project's scales file is of.

    Raises:
        RecipeInvalidError: what the recipe merges cannot be summed.
        StateError: the masks came off a sum of one of the contributions, or of these answers, before.
        GramfuseError: see `decide_cohort`.
    """
    if recipe.request is None and recipe.base_model is not None:
        msg = "a secure sum of contributions is around the project's base; leave out base_model"
        raise RecipeInvalidError(msg)
    cohort = decide_cohort(recipe)
    _require_unsummed(session, project.id, cohort, recipe.request)
    policy = current_policy(session, project)
    contributions = [
        (_manifest(session, member), _identity(session, project.id, member.organization), member.weight)
        for member in cohort
    ]
    if recipe.request is not None:
        answers = accepted_answers(session, find_request(session, project.id, recipe.request))
        answered = [(*joined, answers[joined[0].organization]) for joined in contributions]
        return plan_answer_session(identifier, recipe, answered, base_of(project))
    return plan_session(
        project.id,
        identifier,
        recipe,
        contributions,
        base_of(project),
        scales=policy.scales,
        scaled_taps=scaled_taps,
        head_parameters=policy.head_parameters,
    )


def taps_of_scales(blobs: Blobs, scales: str | None) -> tuple[str, ...]:
    """Return the taps that a scales file is of, by its digest; none without one."""
    if scales is None:
        return ()
    return tuple(tap.name for tap in parse_scales_metadata(read_header(_Blob(blobs, scales))).taps)


def summed_cohort(session: Session, row: RequestRow, recipe: Recipe, *, now: datetime) -> tuple[CohortMember, ...]:
    """Return those whose words are in a session's sum, with their weights, if a recipe is the session's own.

    Raises:
        RecipeInvalidError: the request is not the last stage, or the recipe is another than the session's.
        StateError: the stage is not complete, a contribution was withdrawn or replaced, or the words were deleted.
    """
    manifest = session_of(session, row)
    if stage_of_request(row) != "unmask" or recipe != manifest.recipe.model_copy(update={"request": row.id}):
        msg = f"a sum is merged by its session's recipe, with its last request; {row.id} is of {manifest.session}"
        raise RecipeInvalidError(msg)
    state = progress(session, row, now)
    if state.state != "complete":
        reason = f": {state.reason}" if state.reason else ""
        msg = f"request {row.id} is {state.state}{reason}; the sum can be merged once it is complete"
        raise StateError(msg, state=state.state)
    surviving = summed_by(shown_in(session, row))
    require_standing(session, row, surviving)
    require_words(session, row, surviving)
    cohort = [
        CohortMember(member.contribution, member.organization, member.weight)
        for member in manifest.members
        if member.organization in surviving
    ]
    return tuple(sorted(cohort, key=lambda member: member.contribution))


def _require_unsummed(session: Session, project: str, cohort: Sequence[CohortMember], request: str | None) -> None:
    """Members let a contribution, or their answers to a request, be summed once; who asks again would wait in vain."""
    contributions = {member.contribution: member.organization for member in cohort}
    answered = (
        select(RequestRow)
        .join(AskedRow, (AskedRow.project == RequestRow.project) & (AskedRow.request == RequestRow.id))
        .where(RequestRow.project == project, RequestRow.opened_by.is_not(None), AskedRow.answer.is_not(None))
        .distinct()
    )
    for row in session.scalars(answered):
        if stage_of_request(row) == "unmask":
            manifest = session_of(session, row)
            if manifest.recipe.request != request:
                continue
            again = sorted(member.organization for member in manifest.members if member.contribution in contributions)
            if again:
                what, anew = "the contribution", "contribute anew"
                if request is not None:
                    what, anew = f"the answer to {request}", "answer another request"
                msg = (
                    f"{what} of {', '.join(again)} was summed in {manifest.session} before, and is once: two "
                    f"sums would differ by what single members hold. Have everybody {anew}"
                )
                raise StateError(msg, organizations=again)


class _Blob:
    """A blob, readable by ranges."""

    def __init__(self, blobs: Blobs, sha256: str) -> None:
        self._blobs, self._key = blobs, blob_key(sha256)
        self.size = blobs.size(self._key) or 0

    def read(self, start: int, end: int) -> bytes:
        return self._blobs.read(self._key, start, end)


def _manifest(session: Session, member: CohortMember) -> ContributionManifest:
    return ContributionManifest.parse(session.get_one(ContributionRow, member.contribution).manifest)


def _identity(session: Session, project: str, organization: str) -> str:
    identity = session.get_one(ParticipantRow, (project, organization)).identity
    if identity is None:
        msg = f"{organization} has no identity key in {project}; have it join again (`gramfuse project join`)"
        raise StateError(msg, organization=organization)
    return identity
