"""Decide refits, touching nothing: a merged model's head, layers or biases, from answers; all else stays as it is."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from gramfuse_shared.contract.calibration import CalibrationHistograms
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.recipe import DEFAULT_REFIT_RIDGE, DEFAULT_WEIGHT, Recipe, resolve
from gramfuse_shared.contract.refits import bias_beside
from gramfuse_shared.errors import ArchitectureMismatchError, RecipeInvalidError
from gramfuse_shared.fusion.calibration import add_histograms
from gramfuse_shared.merging.label_rows import sets_of_rows
from gramfuse_shared.merging.parameters import output_tensor
from gramfuse_shared.merging.plan import Member, MergePlan
from gramfuse_shared.merging.planning import DEFAULT_SHARD_BYTES, method_version
from gramfuse_shared.merging.refit_steps import HeadPart, HeadStep, LayersStep, RefitLayer, RefitStep, ShiftStep
from gramfuse_shared.merging.schedule import tap_of
from gramfuse_shared.merging.sharding import plan_tasks
from gramfuse_shared.merging.steps import CopyStep, Step
from gramfuse_shared.merging.terms import Layout, Term


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
    bias = model.get(bias_beside(name))
    step = HeadStep(
        weight=output_tensor(stored, recipe),
        bias=None if bias is None else output_tensor(bias, recipe),
        stored=(stored,) if bias is None else (stored, bias),
        parts=parts,
        ridge=resolve(recipe.parameters.ridge, name, default=DEFAULT_REFIT_RIDGE),
        by_rows=recipe.parameters.normalize == "rows",
        reason=_why_rows(stored.shape[0], parts, len(chosen)),
    )
    return plan_around([step], labels_of(chosen), model, recipe, shard_bytes)


def plan_layers(
    members: Sequence[Member],
    model: Mapping[str, TensorInfo],
    recipe: Recipe,
    *,
    only: Collection[str],
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    minimum_holders: int = 1,
) -> MergePlan:
    """Plan the refit of a merged model's linear layers.

    Layers that read the same tap in every member's answer, with the same weights and ridge, are solved together; each
    bias is the parameter beside the weight of that name, where the model has one. Members of weight 0 are left out.

    Args:
        members: with refit statistics as their taps.
        model: the merged model's tensors.
        recipe: its ridge, normalization and dtypes; weights are the members'.
        only: weights that every member answered; all other layers stay as the model has them. None of them: a copy.
        shard_bytes: of a file.
        minimum_holders: members that a layer needs.

    Raises:
        ArchitectureMismatchError: a layer is none that the model has, or members store it in different ways.
        RecipeInvalidError: no layer was answered by enough members of a weight.
    """
    taps = {member.key: {layer.weight: tap for tap in member.taps for layer in tap.layers} for member in members}
    layouts = _layouts(members)
    groups: dict[tuple[tuple[Term, ...], float, bool], list[RefitLayer]] = {}
    unknown = sorted(set(only) - model.keys())
    if unknown:
        msg = f"{unknown[0]} is no parameter of the model"
        raise ArchitectureMismatchError(msg, layers=unknown[:20])
    for name in (name for name in model if name in only):
        weights = {member.key: resolve(member.weight, name, default=DEFAULT_WEIGHT) for member in members}
        terms = tuple(Term(key, weights[key], taps[key][name]) for key in sorted(weights) if weights[key] > 0)
        if len(terms) < max(minimum_holders, 1):
            continue
        stored = tuple(model[part] for part in (name, bias_beside(name)) if part in model)
        layer = RefitLayer(layouts[name], stored, tuple(output_tensor(tensor, recipe) for tensor in stored))
        ridge = resolve(recipe.parameters.ridge, name, default=DEFAULT_REFIT_RIDGE)
        groups.setdefault((terms, ridge, layer.has_bias), []).append(layer)
    if only and not groups:
        msg = f"no layer was answered by {max(minimum_holders, 1)} of the organizations; nothing can be refit"
        raise RecipeInvalidError(msg)
    by_rows = recipe.parameters.normalize == "rows"
    steps = [
        LayersStep(tuple(layers), terms, width=tap_of(terms[0]).width, ridge=ridge, by_rows=by_rows)
        for (terms, ridge, _), layers in groups.items()
    ]
    have_a_say = {term.key for step in steps for term in step.terms} if steps else taps.keys()
    chosen = sorted((member for member in members if member.key in have_a_say), key=lambda member: member.key)
    return plan_around(steps, labels_of(chosen), model, recipe, shard_bytes)


def _layouts(members: Sequence[Member]) -> dict[str, Layout]:
    layouts: dict[str, Layout] = {}
    for layer in (layer for member in members for tap in member.taps for layer in tap.layers):
        if layouts.setdefault(layer.weight, layer.layout) != layer.layout:
            msg = f"{layer.weight} is stored out_in to one organization and in_out to another"
            raise ArchitectureMismatchError(msg, layers=[layer.weight])
    return layouts


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
    reason = why_labels_stay(total.labels, len(enough), max(minimum_holders, 1))
    kept = total.model_copy(update={"classes": tuple(one for one in total.classes if one.label in enough)})
    step = ShiftStep(output_tensor(model[bias], recipe), model[bias], kept, len(chosen), reason)
    return plan_around([step], labels_of(chosen), model, recipe, shard_bytes)


def why_labels_stay(labels: int, counted: int, minimum_holders: int) -> str | None:
    """Say how many labels keep their bias because too few counted them; None where none does."""
    if counted == labels:
        return None
    return f"{labels - counted} of {labels} labels stay: fewer than {minimum_holders} organizations counted them"


def labels_of(members: Sequence[Member]) -> dict[str, str]:
    """Return what members are called, by their keys."""
    return {member.key: member.label for member in members}


def plan_around(
    changing: Sequence[RefitStep],
    labels: Mapping[str, str],
    model: Mapping[str, TensorInfo],
    recipe: Recipe,
    shard_bytes: int,
) -> MergePlan:
    """Plan each changing step in the place of its first tensor, and copies of everything else."""
    first = {step.outputs[0].name: step for step in changing}
    changed = {output.name for step in changing for output in step.outputs}
    steps: list[Step] = []
    for name, stored in model.items():
        if name in first:
            steps.append(first[name])
        elif name not in changed:
            steps.append(CopyStep(output_tensor(stored, recipe), None, stored))
    return MergePlan(
        method=recipe.merge_method,
        method_version=method_version(recipe),
        labels=dict(labels),
        tasks=plan_tasks(steps, shard_bytes=shard_bytes),
    )


def _why_rows(labels: int, parts: Sequence[HeadPart], members: int) -> str | None:
    refit = sum(len(part.rows) for part in parts)
    fewer = sum(len(part.rows) for part in parts if len(part.terms) < members)
    reasons = [f"{fewer} of {labels} label rows are refit from fewer than the {members} answers"] if fewer else []
    if refit < labels:
        reasons.append(f"{labels - refit} of {labels} label rows were trained by too few and stay as they are")
    return "; ".join(reasons) or None
