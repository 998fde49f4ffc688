"""Decide in which steps a model is merged anew, and under which names, so that a rerun finds what there is. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from pydantic import ValidationError

from gramfuse.refining.blocks import Block
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.recipe import MethodParameters, Recipe
from gramfuse_shared.errors import RecipeInvalidError

RefiningMethod = Literal["regmean", "refit"]
"""What each step does: merges layers anew by what they read, or refits them to what their owners' layers give."""


@dataclass(frozen=True, slots=True)
class Step:
    """One request and the job that merges its answers.

    Attributes:
        number: from 1.
        total: of all steps.
        origin: the model that is measured, and merged anew.
        job: the model that comes out.
        request: the request's id.
        layers: the weights that are measured.
    """

    number: int
    total: int
    origin: str
    job: str
    request: str
    layers: tuple[str, ...]


def plan_steps(model: str, result: str, blocks: Sequence[Block], *, at_once: int | None) -> tuple[Step, ...]:
    """Plan the steps from `model` to `result`: so many blocks in each, None: all in one.

    The model behind step n is `<result>-n`, the last one's is `<result>`; requests bear the same numbers.
    """
    size = len(blocks) if at_once is None else at_once
    groups = [blocks[start : start + size] for start in range(0, len(blocks), size)]
    names = [f"{result}-{number}" for number in range(1, len(groups) + 1)]
    jobs = [*names[:-1], result]
    return tuple(
        Step(
            number=position + 1,
            total=len(groups),
            origin=jobs[position - 1] if position else model,
            job=jobs[position],
            request=names[position],
            layers=tuple(chain.from_iterable(block.layers for block in group)),
        )
        for position, group in enumerate(groups)
    )


def recipe_of_step(
    step: Step,
    request: str,
    first: Recipe,
    *,
    method: RefiningMethod = "regmean",
    alpha: float | None = None,
    ridge: float | None = None,
) -> Recipe:
    """Return the recipe that merges a request's answers: by the first model's parameters, if those are RegMean's.

    Of them a refit takes whether organizations or rows count alike.

    Args:
        step: the step.
        request: the id under which it was answered.
        first: the recipe of the model that the refinement began with.
        method: what a step does.
        alpha: of `regmean`, in place of the first recipe's.
        ridge: of `refit`, in place of the default.

    Raises:
        RecipeInvalidError: alpha is no share, or the ridge not above 0.
    """
    parameters = first.parameters if first.merge_method == "regmean" else MethodParameters()
    if method == "refit":
        chosen = {"normalize": parameters.normalize} | ({} if ridge is None else {"ridge": float(ridge)})
        document = {"merge_method": "refit", "base_model": step.origin, "request": request, "parameters": chosen}
        try:
            return Recipe.model_validate(document)
        except ValidationError as error:
            raise RecipeInvalidError(describe_validation("recipe", error.errors())) from error
    if alpha is not None:
        if not 0 <= alpha <= 1:
            msg = f"alpha is {alpha:g}; it lies between 0 and 1"
            raise RecipeInvalidError(msg)
        parameters = parameters.model_copy(update={"alpha": float(alpha)})
    return Recipe(merge_method="regmean", base_model=step.origin, request=request, parameters=parameters)
