"""Decide refits, touching nothing: the head of a merged model, or its biases, from answers; all else stays as it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from gramfuse_shared.contract.calibration import CalibrationHistograms
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.recipe import DEFAULT_HEAD_RIDGE, DEFAULT_WEIGHT, Recipe, resolve
from gramfuse_shared.errors import ArchitectureMismatchError, RecipeInvalidError
from gramfuse_shared.fusion.calibration import add_histograms
from gramfuse_shared.merging.label_rows import sets_of_rows
from gramfuse_shared.merging.parameters import output_tensor
from gramfuse_shared.merging.plan import Member, MergePlan
from gramfuse_shared.merging.planning import DEFAULT_SHARD_BYTES, method_version
from gramfuse_shared.merging.sharding import plan_tasks
from gramfuse_shared.merging.steps import CopyStep, HeadPart, HeadStep, ShiftStep, Step, Term

_WEIGHT_SUFFIX: Final = ".weight"
_BIAS_SUFFIX: Final = ".bias"


def plan_head(
    members: Sequence[Member],
    model: Mapping[str, TensorInfo],
    recipe: Recipe,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    minimum_holders: int = 1,
) -> MergePlan:
    """Plan the refit of a merged model's head.

    The head is the layer that every answer names; its bias is the parameter beside it of that name, where the model
    has one. Each row is refit from those members that trained its label (`Member.labels`; all of those that say
    nothing), and stays as the model has it where they are fewer than `minimum_holders`. Members of weight 0 are left
    out.

    Args:
        members: with head statistics as their one tap.
        model: the merged model's tensors.
        recipe: its ridge, normalization and dtypes; weights are the members'.
        shard_bytes: of a file.
        minimum_holders: members that a row needs.

    Raises:
        ArchitectureMismatchError: the answers are of different layers, or of none that the model has.
        RecipeInvalidError: nobody has a weight, or no row enough members.
    """
    named = {layer.weight for member in members for tap in member.taps for layer in tap.layers}
    name = min(named, default="")
    if len(named) != 1 or name not in model:
        msg = f"a refit is of one layer of the model; the answers are of {', '.join(sorted(named)) or 'none'}"
        raise ArchitectureMismatchError(msg)
    weights = {member.key: resolve(member.weight, name, default=DEFAULT_WEIGHT) for member in members}
    chosen = sorted((member for member in members if weights[member.key] > 0), key=lambda member: member.key)
    stored = model[name]
    everything = [(tuple(range(stored.shape[0])), chosen)]
    sets = sets_of_rows(stored, chosen) or everything
    parts = tuple(
        HeadPart(rows, tuple(Term(member.key, weights[member.key], member.taps[0]) for member in sharing))
        for rows, sharing in sets
        if len(sharing) >= max(minimum_holders, 1)
    )
    if not parts:
        msg = f"no row of {name} was trained by {max(minimum_holders, 1)} of the contributions; nothing can be refit"
        raise RecipeInvalidError(msg)
    bias = model.get(name.removesuffix(_WEIGHT_SUFFIX) + _BIAS_SUFFIX)
    step = HeadStep(
        weight=output_tensor(stored, recipe),
        bias=None if bias is None else output_tensor(bias, recipe),
        stored=(stored,) if bias is None else (stored, bias),
        parts=parts,
        ridge=resolve(recipe.parameters.ridge, name, default=DEFAULT_HEAD_RIDGE),
        by_rows=recipe.parameters.normalize == "rows",
        reason=_why_rows(stored.shape[0], parts, len(chosen)),
    )
    return _plan_around(step, chosen, model, recipe, shard_bytes)


def plan_calibration(
    histograms: Mapping[str, CalibrationHistograms],
    members: Sequence[Member],
    bias: str,
    model: Mapping[str, TensorInfo],
    recipe: Recipe,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    minimum_holders: int = 1,
) -> MergePlan:
    """Plan the shift of a merged model's bias by the sums of histograms.

    Labels of which fewer than `minimum_holders` members counted scores are not shifted. Every text counts the same;
    members of weight 0 are left out.

    Args:
        histograms: the answers by member key.
        members: who answered.
        bias: the parameter [labels].
        model: the merged model's tensors.
        recipe: its dtypes.
        shard_bytes: of a file.
        minimum_holders: members that a label needs.

    Raises:
        ArchitectureMismatchError: the model has no such bias, or the histograms are of different labels or scores.
        RecipeInvalidError: no label was counted by enough members.
    """
    chosen = [member for member in members if resolve(member.weight, bias, default=DEFAULT_WEIGHT) > 0]
    total = add_histograms([histograms[member.key] for member in chosen])
    if bias not in model or model[bias].shape != (total.labels,):
        msg = f"the histograms are of {total.labels} labels, and the model has no bias {bias} of so many"
        raise ArchitectureMismatchError(msg)
    counted = Counter(one.label for member in chosen for one in histograms[member.key].classes)
    enough = {label for label, holders in counted.items() if holders >= max(minimum_holders, 1)}
    if not enough:
        msg = f"no label was counted by {max(minimum_holders, 1)} of the organizations, so none is shifted"
        raise RecipeInvalidError(msg)
    few = total.labels - len(enough)
    reason = None
    if few:
        reason = f"{few} of {total.labels} labels stay: fewer than {max(minimum_holders, 1)} organizations counted them"
    kept = total.model_copy(update={"classes": tuple(one for one in total.classes if one.label in enough)})
    step = ShiftStep(output_tensor(model[bias], recipe), model[bias], kept, len(chosen), reason)
    return _plan_around(step, chosen, model, recipe, shard_bytes)


def _plan_around(
    step: HeadStep | ShiftStep,
    members: Sequence[Member],
    model: Mapping[str, TensorInfo],
    recipe: Recipe,
    shard_bytes: int,
) -> MergePlan:
    """Plan the one step, in the place of its first tensor, and copies of everything else."""
    changed = [output.name for output in step.outputs]
    steps: list[Step] = []
    for name, stored in model.items():
        if name == changed[0]:
            steps.append(step)
        elif name not in changed:
            steps.append(CopyStep(output_tensor(stored, recipe), None, stored))
    return MergePlan(
        method=recipe.merge_method,
        method_version=method_version(recipe),
        labels={member.key: member.label for member in members},
        tasks=plan_tasks(steps, shard_bytes=shard_bytes),
    )


def _why_rows(labels: int, parts: Sequence[HeadPart], members: int) -> str | None:
    refit = sum(len(part.rows) for part in parts)
    fewer = sum(len(part.rows) for part in parts if len(part.terms) < members)
    reasons = [f"{fewer} of {labels} label rows are refit from fewer than the {members} answers"] if fewer else []
    if refit < labels:
        reasons.append(f"{labels - refit} of {labels} label rows were trained by too few and stay as they are")
    return "; ".join(reasons) or None
