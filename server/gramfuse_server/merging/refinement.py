"""Merge a model anew with the answers to a request about it: whose answers, and what the model consists of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.merging.cohort import Candidate, CohortMember
from gramfuse_server.merging.documents import find_model
from gramfuse_server.merging.members import cohort_of
from gramfuse_server.requests.documents import accepted_answers, find_request, progress, request_of
from gramfuse_server.tables import JobRow, ModelFileRow, ModelRow, ProjectRow, RequestRow
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import MERGED_BY, Answer
from gramfuse_shared.errors import NotFoundError, RecipeInvalidError, StateError


@dataclass(frozen=True, slots=True)
class Refined:
    """A model that is merged anew.

    Attributes:
        model: its id.
        files: all of its files.
        recipes: what made it, the newest first: each decides in which dtypes the tensors were written.
        answers: the answers by contribution.
        layers: linear weights that every member measured; the rest of the model stays as it is.
    """

    model: str
    files: tuple[FileEntry, ...]
    recipes: tuple[Recipe, ...]
    answers: Mapping[str, Answer]
    layers: frozenset[str]


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
    found = accepted_answers(session, find_request(session, job.project, recipe.request))
    answers = {member.contribution: found[member.organization] for member in cohort}
    measured = [_layers(answer) for answer in answers.values()]
    files = session.scalars(
        select(ModelFileRow)
        .where(ModelFileRow.project == job.project, ModelFileRow.model == recipe.base_model)
        .order_by(ModelFileRow.position)
    )
    return Refined(
        model=recipe.base_model,
        files=tuple(FileEntry(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in files),
        recipes=_recipes(session, job.project, recipe.base_model),
        answers=answers,
        layers=frozenset.intersection(*measured),
    )


def _layers(answer: Answer) -> frozenset[str]:
    taps = () if answer.statistics is None else answer.statistics.taps
    return frozenset(layer.weight for tap in taps for layer in tap.layers)


def _recipes(session: Session, project: str, model: str) -> tuple[Recipe, ...]:
    recipes: list[Recipe] = []
    while True:
        row = session.get_one(ModelRow, (project, model))
        recipes.append(SignedReceipt.parse(row.receipt).receipt.recipe)
        if recipes[-1].request is None or recipes[-1].base_model is None:
            return tuple(recipes)
        model = recipes[-1].base_model
