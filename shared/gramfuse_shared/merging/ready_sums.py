"""Ready sums: what contributions added up to elsewhere, merged in their place.

A secure aggregation delivers, around the base and in float64, ΣcᵢDᵢ of every parameter, and for linears whose tap
everybody sent ΣPᵢ (α and aᵢ applied by whoever sent) and ΣDᵢPᵢ. As tensors: `weighted.<parameter>` in the parameter's
shape, `precision.<tap>` packed, `product.<parameter>` as [out, in]; of what is weighed element by element
`precision.<parameter>` and `product.<parameter>` in the parameter's shape.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from gramfuse_shared.contract.manifest import LayerInfo, TensorInfo
from gramfuse_shared.contract.policy import matches_any
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.safetensors_header import FLOAT_DTYPES
from gramfuse_shared.contract.secure_session import SessionTap, precision_name, product_name, weighted_name
from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.fusion.methods.method import MethodSettings
from gramfuse_shared.merging.parameters import output_tensor
from gramfuse_shared.merging.plan import MergePlan
from gramfuse_shared.merging.planning import DEFAULT_SHARD_BYTES, method_version
from gramfuse_shared.merging.sharding import plan_tasks
from gramfuse_shared.merging.steps import AverageStep, CopyStep, DiagonalStep, GramStep, Linear, Step
from gramfuse_shared.merging.terms import SUM_BYTES, ReadySum, tensor_bytes

__all__ = ["SummedMember", "plan_sums", "precision_name", "product_name", "weighted_name"]

_SUMMED: Final = MethodSettings(alpha=1.0, normalize="equal")
"""What whoever sent has applied is not applied again."""


@dataclass(frozen=True, slots=True)
class SummedMember:
    """Ready sums without their values. `weights` gives Σcᵢ > 0 of every summed parameter; others are the base's.

    `elements` are the parameters whose precisions are summed element by element.
    """

    key: str
    label: str
    weights: Mapping[str, float]
    taps: tuple[SessionTap, ...] = ()
    elements: Collection[str] = ()


def plan_sums(
    sums: SummedMember,
    base: Mapping[str, TensorInfo],
    recipe: Recipe,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> MergePlan:
    """Plan the merge of ready sums; `execute_task` reads them as the weights of the one member `sums.key`.

    The recipe's weights, α and normalisation are in the sums already. Solves are in float64: α is not known here, and
    sums of masked words hold more digits than float32.

    Raises:
        ArchitectureMismatchError: a summed parameter is not one of the base's floating-point parameters, or a tap does
            not fit it.
    """
    strange = [name for name in sums.weights if name not in base or base[name].dtype not in FLOAT_DTYPES]
    if strange:
        msg = f"{sums.label} sums {strange[0]}, which is no floating-point parameter of the base"
        raise ArchitectureMismatchError(msg)
    feeds = {layer.weight: (tap, layer) for tap in sums.taps for layer in tap.layers}
    steps: dict[tuple[str, ...], Step] = {}
    for name, stored in base.items():
        output = output_tensor(stored, recipe)
        excluded = matches_any(name, recipe.parameters.exclude)
        if excluded or name not in sums.weights:
            steps[(name,)] = CopyStep(output, None, stored, "excluded by the recipe" if excluded else None)
            continue
        sum_bytes = math.prod(stored.shape) * SUM_BYTES
        weight = sums.weights[name]
        if name in sums.elements:
            ready, stored_bytes = ReadySum(sums.key, weight), tensor_bytes(stored) + 3 * sum_bytes
            steps[(name,)] = DiagonalStep(output, ready, None, _SUMMED, "float64", stored_bytes)
            continue
        if name not in feeds:
            average = AverageStep(output, ReadySum(sums.key, weight), None, "float64", tensor_bytes(stored) + sum_bytes)
            steps[(name,)] = average
            continue
        tap, layer = feeds[name]
        _require_fit(sums, tap, layer, stored)
        key = (tap.name, output.dtype, str(weight))
        other = steps.get(key)
        before = other if isinstance(other, GramStep) else None
        steps[key] = GramStep(
            linears=(*(before.linears if before else ()), Linear(output, layer.layout)),
            terms=ReadySum(sums.key, weight, tap.name),
            reference=None,
            width=tap.width,
            settings=_SUMMED,
            compute="float64",
            stored_bytes=(before.stored_bytes if before else 0) + tensor_bytes(stored) + 2 * sum_bytes,
        )
    return MergePlan(
        method=recipe.merge_method,
        method_version=method_version(recipe),
        labels={sums.key: sums.label},
        tasks=plan_tasks(list(steps.values()), shard_bytes=shard_bytes),
    )


def _require_fit(sums: SummedMember, tap: SessionTap, layer: LayerInfo, stored: TensorInfo) -> None:
    inputs = stored.shape[1 if layer.layout == "out_in" else 0] if len(stored.shape) == 2 else None  # noqa: PLR2004
    if inputs != tap.width:
        msg = f"{sums.label}: tap {tap.name} has {tap.width} features, {stored.name} is {list(stored.shape)}"
        raise ArchitectureMismatchError(msg)
