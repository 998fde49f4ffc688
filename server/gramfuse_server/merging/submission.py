"""Submit, retry and cancel jobs: the row, its cohort, the first attempt and the queue's entry in one transaction."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import cast

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from gramfuse_server.auth import Caller
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.jobs import UNFINISHED, JobQueue, prioritize, write_log
from gramfuse_server.merging.cohort import Candidate, CohortMember, Release, require_allowed, resolve_cohort
from gramfuse_server.merging.members import cohort_of, write_weight
from gramfuse_server.merging.refinement import answered_cohort
from gramfuse_server.merging.sessions import summed_cohort
from gramfuse_server.requests.documents import find_request
from gramfuse_server.requests.kept_words import require_words
from gramfuse_server.requests.sessions import is_stage
from gramfuse_server.standing import standing_contributions
from gramfuse_server.tables import (
    AttemptRow,
    ContributionRow,
    JobContributionRow,
    JobRow,
    ModelRow,
    ProjectRow,
    UploadRow,
)
from gramfuse_shared.contract.http_api import JobCreate
from gramfuse_shared.contract.operators import Priority
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import ConflictError, PolicyViolationError, RecipeInvalidError, StateError


def submit(
    session: Session, project: ProjectRow, caller: Caller, *, job: str, body: JobCreate, queue: JobQueue, now: datetime
) -> tuple[JobRow, bool]:
    """Create a job, or find it where it was submitted before; tell whether it is new. `project` is locked.

    Raises:
        ConflictError: the id stands for another submission.
        StateError: the project's base model is not ready.
        RecipeInvalidError, PolicyViolationError, CohortFrozenError: see `cohort`.
    """
    known = session.get(JobRow, (project.id, job))
    if known is not None:
        if known.submission_digest != body.content_digest():
            msg = f"job {job} was submitted with another recipe; choose another id"
            raise ConflictError(msg)
        return known, False
    if current_policy(session, project).aggregation == "secure" and not _is_of_sum(session, project, body.recipe):
        msg = (
            "the policy says aggregation: secure, so nothing but sums is merged; begin one with `gramfuse request sum`"
        )
        raise PolicyViolationError(msg, aggregation="secure")
    cohort = decide_cohort(session, project, body.recipe, besides=job, now=now)
    row = JobRow(
        project=project.id,
        id=job,
        submission_digest=body.content_digest(),
        recipe=body.recipe.canonical().decode(),
        policy_version=project.policy_version,
        state="queued",
        stage="queued",
        priority="normal",
        attempt=1,
        done_tasks=0,
        total_tasks=0,
        done_bytes=0,
        total_bytes=0,
        submitted_by=caller.token,
        created_at=now,
    )
    session.add(row)
    session.flush()
    for member in cohort:
        session.add(
            JobContributionRow(
                project=project.id,
                job=job,
                contribution=member.contribution,
                organization=member.organization,
                weight=write_weight(member.weight),
            )
        )
    names = ", ".join(sorted(member.organization for member in cohort))
    write_log(session, row, now, f"submitted: {body.recipe.merge_method} of {names}")
    _enqueue(session, row, queue, now)
    return row, True


def retry(session: Session, project: ProjectRow, row: JobRow, *, queue: JobQueue, now: datetime) -> bool:
    """Start a new attempt at a failed or cancelled job; tell whether there was one to start. `project` is locked.

    Raises:
        StateError: the job has succeeded, a contribution of its cohort, or words, are gone, or the policy has changed.
        PolicyViolationError, CohortFrozenError: a release since then forbids it.
    """
    if row.state in UNFINISHED:
        return False
    if row.state == "succeeded":
        msg = f"job {row.id} has succeeded; submit another one under another id"
        raise StateError(msg, state=row.state)
    if row.policy_version != project.policy_version:
        msg = f"job {row.id} was submitted under version {row.policy_version} of the policy; submit it under a new id"
        raise StateError(msg, version=project.policy_version)
    cohort = _with_contents(session, cohort_of(session, row))
    usable = {candidate.contribution for candidate in _candidates(session, project)}
    gone = sorted(member.organization for member in cohort if member.contribution not in usable)
    if gone:
        msg = f"the contribution of {', '.join(gone)} was withdrawn or replaced; submit a job under a new id"
        raise StateError(msg, organizations=gone)
    recipe = Recipe.parse(row.recipe)
    policy = current_policy(session, project)
    require_allowed(recipe, cohort, policy, _releases(session, project, policy, besides=row.id))
    if recipe.request is not None:
        summed = [member.organization for member in cohort]
        require_words(session, find_request(session, project.id, recipe.request), summed)
    row.attempt += 1
    row.state = row.stage = "queued"
    row.done_tasks = row.total_tasks = row.done_bytes = row.total_bytes = 0
    row.solved_layers = row.averaged_layers = None
    row.rate = row.error_code = row.error_message = row.started_at = row.finished_at = None
    write_log(session, row, now, f"attempt {row.attempt}")
    _enqueue(session, row, queue, now)
    return True


def set_priority(session: Session, row: JobRow, priority: Priority, now: datetime) -> bool:
    """Have a job's work go before or behind others', what waits of it already included; tell whether that is new.

    Args:
        session: the transaction.
        row: the job, held.
        priority: of this attempt and of those that follow.
        now: the present.

    Raises:
        StateError: it has its model.
    """
    if row.priority == priority:
        return False
    if row.state == "succeeded":
        msg = f"job {row.id} has {row.state} already"
        raise StateError(msg, state=row.state)
    row.priority = priority
    prioritize(session, project=row.project, job=row.id, attempt=row.attempt, priority=priority)
    write_log(session, row, now, f"priority: {priority}, set by an operator")
    return True


def decide_cohort(
    session: Session, project: ProjectRow, recipe: Recipe, *, besides: str, now: datetime
) -> tuple[CohortMember, ...]:
    """Find the contributions that a recipe merges, if the policy allows it beside all releases but one job's.

    Raises:
        StateError: the project's base model is not ready.
        RecipeInvalidError, PolicyViolationError, CohortFrozenError: see `cohort`.
        GramfuseError: see `answered_cohort` and `summed_cohort`.
    """
    state = session.get_one(UploadRow, project.base_upload).state
    if state != "accepted":
        msg = f"the base model of {project.id} is not ready ({state}); wait until it is checked"
        raise StateError(msg, state=state)
    if recipe.request is None and recipe.base_model not in {None, project.id, project.base_digest}:
        msg = f"base_model is {recipe.base_model}; a project's jobs merge around its own base, so leave it out"
        raise RecipeInvalidError(msg)
    candidates = _candidates(session, project)
    row = None if recipe.request is None else find_request(session, project.id, recipe.request)
    if row is None:
        found = resolve_cohort(recipe, candidates)
    elif is_stage(row):
        found = summed_cohort(session, row, recipe, now=now)
    else:
        found = answered_cohort(session, project, recipe, row, candidates, now=now)
    cohort = _with_contents(session, found)
    policy = current_policy(session, project)
    require_allowed(recipe, cohort, policy, _releases(session, project, policy, besides=besides))
    return cohort


def _is_of_sum(session: Session, project: ProjectRow, recipe: Recipe) -> bool:
    """Tell whether a recipe names a stage of a secure sum; raises NotFoundError where there is no such request."""
    return recipe.request is not None and is_stage(find_request(session, project.id, recipe.request))


def _candidates(session: Session, project: ProjectRow) -> list[Candidate]:
    return [
        Candidate(standing.contribution, standing.organization)
        for standing in standing_contributions(session, project.id)
    ]


def _releases(session: Session, project: ProjectRow, policy: Policy, *, besides: str) -> list[Release]:
    """Jobs with a model, deleted or not, and jobs that may still publish one; none where the policy asks for none."""
    if policy.cohorts == "open":
        return []
    released = exists().where(ModelRow.project == JobRow.project, ModelRow.id == JobRow.id)
    rows = session.scalars(
        select(JobRow)
        .where(JobRow.project == project.id, JobRow.id != besides, released | JobRow.state.in_(UNFINISHED))
        .order_by(JobRow.created_at, JobRow.id)
    )
    releases = []
    known: dict[str, _Contents] = {}
    for row in rows:
        cohort = _with_contents(session, cohort_of(session, row), known)
        releases.append(
            Release(
                job=row.id,
                recipe=Recipe.parse(row.recipe),
                weights={member.organization: member.weight for member in cohort},
                labels={member.organization: member.labels for member in cohort},
                tensors={member.organization: member.tensors for member in cohort},
            )
        )
    return releases


_Contents = tuple[tuple[int, ...] | None, frozenset[str]]
"""Trained labels, and names of tensors."""


def _with_contents(
    session: Session, cohort: Sequence[CohortMember], known: dict[str, _Contents] | None = None
) -> tuple[CohortMember, ...]:
    """Add what the contributions' manifests say of trained labels and tensors; `known` keeps what was read."""
    read = {} if known is None else known
    for member in cohort:
        if member.contribution not in read:
            read[member.contribution] = _contents(session, member.contribution)
    contents = [read[member.contribution] for member in cohort]
    return tuple(
        replace(member, labels=labels, tensors=tensors)
        for member, (labels, tensors) in zip(cohort, contents, strict=True)
    )


def _contents(session: Session, contribution: str) -> _Contents:
    manifest = json.loads(session.get_one(ContributionRow, contribution).manifest)
    labels = manifest.get("labels")
    trained = None if labels is None else tuple(labels["trained"])
    return trained, frozenset(tensor["name"] for tensor in manifest["weights"]["tensors"])


def _enqueue(session: Session, row: JobRow, queue: JobQueue, now: datetime) -> None:
    priority = cast("Priority", row.priority)
    workflow = queue.enqueue_merge(session, project=row.project, job=row.id, attempt=row.attempt, priority=priority)
    session.add(
        AttemptRow(
            project=row.project,
            job=row.id,
            number=row.attempt,
            workflow=workflow,
            state="queued",
            created_at=now,
        )
    )
    session.flush()
