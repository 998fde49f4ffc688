"""Decide refits from answers that were added up elsewhere: one file of sums in the place of all members' own."""

from collections.abc import Mapping
from dataclasses import dataclass

from gramfuse_shared.contract.manifest import TapInfo, TensorInfo
from gramfuse_shared.contract.recipe import DEFAULT_REFIT_RIDGE, Recipe, resolve
from gramfuse_shared.contract.refits import bias_beside
from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.merging.parameters import output_tensor
from gramfuse_shared.merging.plan import MergePlan
from gramfuse_shared.merging.planning import DEFAULT_SHARD_BYTES
from gramfuse_shared.merging.refit_planning import plan_around
from gramfuse_shared.merging.refit_steps import HeadPart, HeadStep, ShiftStep, SummedHistograms
from gramfuse_shared.merging.terms import Term


@dataclass(frozen=True, slots=True)
class SummedAnswers:
    """Under which key the engine reads the sums, what they are called, and of how many members they are."""

    key: str
    label: str
    members: int


def plan_summed_head(
    tap: TapInfo,
    answers: SummedAnswers,
    model: Mapping[str, TensorInfo],
    recipe: Recipe,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> MergePlan:
    """Plan the refit of a merged model's head, every row of it, from ΣaᵢGᵢ and ΣaᵢBᵢ.

    Args:
        tap: the head's, as every answer has it.
        answers: whose sums; `execute_task` reads them as the statistics of this one key, in float64.
        model: the merged model's tensors.
        recipe: its ridge and dtypes; weights and normalization are in the sums already.
        shard_bytes: of a file.

    Raises:
        ArchitectureMismatchError: the model has no such layer.
    """
    name = tap.layers[0].weight
    if name not in model:
        msg = f"the answers are of {name}, which the model does not have"
        raise ArchitectureMismatchError(msg)
    stored, bias = model[name], model.get(bias_beside(name))
    term = Term(answers.key, 1.0, tap)
    step = HeadStep(
        weight=output_tensor(stored, recipe),
        bias=None if bias is None else output_tensor(bias, recipe),
        stored=(stored,) if bias is None else (stored, bias),
        parts=(HeadPart(tuple(range(stored.shape[0])), (term,)),),
        ridge=resolve(recipe.parameters.ridge, name, default=DEFAULT_REFIT_RIDGE),
        by_rows=True,  # of a sum nothing is divided by its rows
        summed=answers.members,
    )
    return plan_around([step], {answers.key: answers.label}, model, recipe, shard_bytes)


def plan_summed_calibration(
    histograms: SummedHistograms,
    answers: SummedAnswers,
    bias: str,
    model: Mapping[str, TensorInfo],
    recipe: Recipe,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> MergePlan:
    """Plan the shift of a merged model's bias by sums of histograms, which are read when it is carried out.

    Raises:
        ArchitectureMismatchError: the model has no such bias.
    """
    if bias not in model or model[bias].shape != (histograms.labels,):
        msg = f"the histograms are of {histograms.labels} labels, and the model has no bias {bias} of so many"
        raise ArchitectureMismatchError(msg)
    step = ShiftStep(output_tensor(model[bias], recipe), model[bias], histograms, answers.members)
    return plan_around([step], {answers.key: answers.label}, model, recipe, shard_bytes)
