"""Merge a model anew with the answers to a request about it: whose answers, and what the model consists of."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.merging.cohort import Candidate, CohortMember
from gramfuse_server.merging.documents import find_model
from gramfuse_server.merging.members import cohort_of
from gramfuse_server.requests.documents import accepted_answers, find_request, progress, request_of
from gramfuse_server.tables import AskedRow, JobRow, ModelFileRow, ModelRow, ProjectRow, RequestRow
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import MERGED_BY, Answer, AskedKind
from gramfuse_shared.contract.withholding import Obstacle
from gramfuse_shared.errors import NotFoundError, RecipeInvalidError, StateError


@dataclass(frozen=True, slots=True)
class LeftLayers:
    """Layers that a request asked for and that stay as they are: nothing of them may leave these organizations, why."""

    request: str
    layers: tuple[str, ...]
    withheld: Mapping[str, tuple[Obstacle, ...]]


@dataclass(frozen=True, slots=True)
class Refined:
    """A model that is merged anew.

    Attributes:
        model: its id.
        files: all of its files.
        recipes: what made it, the newest first: each decides in which dtypes the tensors were written.
        answers: the answers by contribution.
        layers: linear weights that every member measured; the rest of the model stays as it is.
        left: what requests of this kind, about this model and those it was merged anew from, left as it was.
    """

    model: str
    files: tuple[FileEntry, ...]
    recipes: tuple[Recipe, ...]
    answers: Mapping[str, Answer]
    layers: frozenset[str]
    left: tuple[LeftLayers, ...] = ()


def answered_cohort(
    session: Session,
    project: ProjectRow,
    recipe: Recipe,
    row: RequestRow,
    candidates: Sequence[Candidate],
    *,
    now: datetime,
) -> tuple[CohortMember, ...]:
    """Return those members of the model's cohort who answered the request that a recipe names, with their weights.

    Raises:
        NotFoundError: there is no such model.
        RecipeInvalidError: the recipe asks for what the request's answers cannot give.
        StateError: the request is not complete, or a contribution of the cohort was withdrawn or replaced.
    """
    asked = request_of(row)
    method = MERGED_BY.get(asked.kind)
    if recipe.merge_method != method:
        merged = f"are merged by {method}" if method else "are shown, not merged"
        msg = f"request {row.id} is of the kind {asked.kind}, whose answers {merged}; the recipe says otherwise"
        raise RecipeInvalidError(msg)
    if recipe.base_model not in asked.models:
        msg = f"request {row.id} is about {asked.models[0]}; name that as base_model"
        raise RecipeInvalidError(msg)
    if recipe.models:
        msg = "the cohort of a model that is merged anew is its own; leave out models"
        raise RecipeInvalidError(msg)
    if find_model(session, project.id, asked.models[0]).deleted_at is not None:
        msg = f"model {asked.models[0]} was deleted"
        raise NotFoundError(msg)
    state = progress(session, row, now)
    if state.state != "complete":
        reason = f": {state.reason}" if state.reason else ""
        msg = f"request {row.id} is {state.state}{reason}; its answers can be merged once it is complete"
        raise StateError(msg, state=state.state)
    answered = accepted_answers(session, row).keys()
    cohort = [
        member
        for member in cohort_of(session, session.get_one(JobRow, (project.id, asked.models[0])))
        if member.organization in answered
    ]
    usable = {candidate.contribution for candidate in candidates}
    gone = sorted(member.organization for member in cohort if member.contribution not in usable)
    if gone:
        msg = (
            f"the contribution of {', '.join(gone)} was withdrawn or replaced; {asked.models[0]} cannot be merged anew"
        )
        raise StateError(msg, organizations=gone)
    return tuple(cohort)


def find_refined(session: Session, job: JobRow, recipe: Recipe, cohort: Sequence[CohortMember]) -> Refined | None:
    """Return the model that a job merges anew; None where it merges around the project's base."""
    if recipe.request is None or recipe.base_model is None:
        return None
    asked = find_request(session, job.project, recipe.request)
    found = accepted_answers(session, asked)
    answers = {member.contribution: found[member.organization] for member in cohort}
    line = _line(session, job.project, recipe.base_model)
    measured = [_layers(answer) for answer in answers.values()]
    files = session.scalars(
        select(ModelFileRow)
        .where(ModelFileRow.project == job.project, ModelFileRow.model == recipe.base_model)
        .order_by(ModelFileRow.position)
    )
    return Refined(
        model=recipe.base_model,
        files=tuple(FileEntry(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in files),
        recipes=tuple(line.values()),
        answers=answers,
        layers=frozenset.intersection(*measured),
        left=_left_layers(session, job.project, request_of(asked).kind, line.keys()),
    )


def _layers(answer: Answer) -> frozenset[str]:
    taps = () if answer.statistics is None else answer.statistics.taps
    return frozenset(layer.weight for tap in taps for layer in tap.layers)


def _line(session: Session, project: str, model: str) -> dict[str, Recipe]:
    """Return what made a model, and the models that it was merged anew from: recipes by model, the newest first."""
    line: dict[str, Recipe] = {}
    while True:
        row = session.get_one(ModelRow, (project, model))
        recipe = line[model] = SignedReceipt.parse(row.receipt).receipt.recipe
        if recipe.request is None or recipe.base_model is None:
            return line
        model = recipe.base_model


def _left_layers(session: Session, project: str, kind: AskedKind, models: AbstractSet[str]) -> tuple[LeftLayers, ...]:
    rows = session.execute(
        select(RequestRow, AskedRow)
        .join(AskedRow, (AskedRow.project == RequestRow.project) & (AskedRow.request == RequestRow.id))
        .where(RequestRow.project == project, AskedRow.answer.contains('"withheld":'))
        .order_by(RequestRow.created_at, RequestRow.id, AskedRow.organization)
    )
    left: dict[str, LeftLayers] = {}
    for row, place in rows:
        asked = request_of(row)
        withheld = Answer.parse(place.answer).withheld if place.answer else ()
        if withheld and asked.kind == kind and not models.isdisjoint(asked.models):
            known = {} if row.id not in left else left[row.id].withheld
            left[row.id] = LeftLayers(row.id, asked.layers, {**known, place.organization: withheld})
    return tuple(left.values())
