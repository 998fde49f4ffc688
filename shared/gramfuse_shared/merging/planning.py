"""Decide a merge, touching nothing: which parameter is merged how, from whom, and into which shard.

The plan is a function of its arguments alone, so every worker that plans the same job gets the same tasks.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.policy import DEFAULT_EMBEDDING_PARAMETERS
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import RecipeInvalidError
from gramfuse_shared.fusion.methods import METHODS, DeltaMethod, DifferenceMethod
from gramfuse_shared.merging.parameters import Planner
from gramfuse_shared.merging.plan import Member, MergePlan
from gramfuse_shared.merging.sharding import plan_tasks

DEFAULT_SHARD_BYTES: Final = 2 * 2**30


def method_version(recipe: Recipe) -> str:
    """Return the version of the recipe's method, for the receipt."""
    return METHODS[recipe.merge_method].version


def plan_merge(
    members: Sequence[Member],
    base: Mapping[str, TensorInfo] | None,
    recipe: Recipe,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    minimum_holders: int = 1,
    embedding_parameters: Sequence[str] = DEFAULT_EMBEDDING_PARAMETERS,
    only: Collection[str] | None = None,
) -> MergePlan:
    """Plan the merge of contributions.

    Of each parameter, in the base's order and then what only members store:
      1. excluded: the base's (left out where the base does not store it),
      2. not floating-point: the base's, else the first member's,
      3. fewer than `minimum_holders` members with a positive weight store it: the base's. The service sets the policy's
         minimum cohort, because the merge of a parameter that one member alone sent is that member's own. Else members
         that left it out because it is the base's in their models count with the base's value,
      4. the method adds differences to the base, and the base stores it: so,
      5. one does: its own value,
      6. a linear weight whose tap every one of these members sent: by the method, in a group with the linears that
         share the tap in each of them and have the same weights, α and ridge. Members that left the weight out and sent
         no tap of it are not among them: nobody measures for a layer that was not tuned,
      7. one whose tap some of them sent, where the recipe says `missing_statistics: estimate` and the base stores it:
         alike, with the others' precisions estimated from their differences to the base,
      8. one of which every one of them sent Fisher information, where the method reads it: element by element,
      9. one by its form (below) that the base stores, where the method's precisions are these differences: by itself,
     10. else: the weighted mean; also where nobody sent the tap, since there is no size for an estimate then.

    Where a linear weight is averaged the step says why. What nobody sent statistics of is taken for one by its form: a
    two-dimensional `….weight` that matches none of `embedding_parameters`, whose rows are looked up, not multiplied.

    Rows of a head that members say they did not train (`Member.labels`) are left out: each set of rows that the same
    members trained is merged of these by 3 to 7, as if they were all.

    With `only`, every other parameter is the base's: a merged model is merged anew in some of its layers.

    Members of weight 0 are left out. `recipe.models` is not read: the members are what its entries stand for.

    Raises:
        RecipeInvalidError: no member has a weight, there is no base for a method or a parameter that needs it, or α is
            too large for rounded statistics, or statistics were measured in different ways, or nobody sent Fisher
            information where the method is nothing without it.
        ArchitectureMismatchError: shapes or kinds of dtype differ, or a tap does not fit the weight that reads it.
    """
    chosen = tuple(
        sorted((member for member in members if member.weight != 0.0), key=lambda member: member.key),
    )
    if not chosen:
        msg = "no model of the merge has a positive weight; name at least one and give it a weight above 0"
        raise RecipeInvalidError(msg)
    if len({member.key for member in chosen}) != len(chosen):
        msg = "two models of the merge have the same content; name each once and raise its weight instead"
        raise RecipeInvalidError(msg)
    if METHODS[recipe.merge_method].reads_taps:
        _require_alike_statistics(chosen)
        if recipe.parameters.missing_statistics == "estimate" and base is None:
            msg = "an estimate is made from differences to the base model, and the recipe names none; add base_model"
            raise RecipeInvalidError(msg)
    if recipe.parameters.exclude and base is None:
        msg = "excluded parameters are the base model's, and the recipe names none; add base_model"
        raise RecipeInvalidError(msg)
    if isinstance(METHODS[recipe.merge_method], DeltaMethod | DifferenceMethod) and base is None:
        msg = f"{recipe.merge_method} takes differences from the base model, and the recipe names none; add base_model"
        raise RecipeInvalidError(msg)
    planner = Planner(chosen, base, recipe, METHODS[recipe.merge_method], minimum_holders, embedding_parameters, only)
    steps = planner.plan_steps()
    if not steps:
        msg = "the models hold no tensors, so there is nothing to merge"
        raise RecipeInvalidError(msg)
    if planner.elements is not None:
        steps = planner.elements.with_norms(steps, recipe)
    return MergePlan(
        method=recipe.merge_method,
        method_version=method_version(recipe),
        labels={member.key: member.label for member in chosen},
        tasks=plan_tasks(steps, shard_bytes=shard_bytes),
    )


def _require_alike_statistics(members: Sequence[Member]) -> None:
    """Statistics of weighted rows and of rows that count alike are of different magnitude: the larger would decide."""
    labels: dict[str, list[str]] = {}
    for member in members:
        if member.taps:
            labels.setdefault(member.weighting, []).append(member.label)
    if len(labels) > 1:
        found = "; ".join(f"{weighting}: {', '.join(sorted(names))}" for weighting, names in sorted(labels.items()))
        msg = f"the statistics are weighted in different ways ({found}); collect all of them with the same weighting"
        raise RecipeInvalidError(msg)
