"""What a contribution must satisfy before a byte of it travels. The client enforces it first, the server again."""

from collections.abc import Collection, Mapping
from typing import Final

from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, LayerInfo, TapInfo, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import ArchitectureMismatchError, PolicyViolationError

CONTRIBUTED_DTYPES: Final = frozenset({"F16", "BF16", "F32"})
"""The dtypes in which weights travel; integer tensors and buffers are the base's."""


def why_tensor_stays(tensor: TensorInfo, base: BaseManifest, policy: Policy) -> str | None:
    """Say why the policy keeps a tensor at home; None where it may leave."""
    role = policy.role_of(tensor.name, tensor.shape, base.vocabulary_size)
    if policy.may_leave(role):
        return None
    return {
        "embedding": "the policy uses the base's embeddings (embeddings: base)",
        "head": "the policy keeps task heads private (heads: private)",
    }[role]


def why_tap_stays(tap: TapInfo, contributed: Collection[str], policy: Policy) -> str | None:
    """Say why a tap's statistics stay at home; None where they may leave.

    Args:
        tap: the tap.
        contributed: names of the weights that leave.
        policy: the project's policy.
    """
    if tap.source != "mixed" and policy.embedding_taps == "withhold":
        fed = "embeddings feed it directly" if tap.source == "embeddings" else "what feeds it is not known"
        return f"{fed}, and its statistics would reveal the text's token counts (embedding_taps: withhold)"
    if tap.distinct_rows < policy.minimum_rows(tap.width):
        return (
            f"it has {tap.distinct_rows} distinct rows, the policy wants {policy.minimum_rows(tap.width)} "
            f"({policy.minimum_rows_per_dimension:g} per dimension)"
        )
    if not any(layer.weight in contributed for layer in tap.layers):
        return "none of the weights that read it leaves, so nothing could be merged with it"
    return None


def require_policy(manifest: ContributionManifest, base: BaseManifest, policy: Policy) -> None:
    """Require that the policy allows everything in the manifest to leave.

    Raises:
        PolicyViolationError: something may not leave; the message names the first and `facts` the first hundred.
    """
    contributed = {tensor.name for tensor in manifest.weights.tensors}
    reasons = {tensor.name: why_tensor_stays(tensor, base, policy) for tensor in manifest.weights.tensors}
    taps = manifest.statistics.taps if manifest.statistics else ()
    reasons |= {f"tap {tap.name}": why_tap_stays(tap, contributed, policy) for tap in taps}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    if refused:
        name, reason = next(iter(refused.items()))
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        msg = f"{name} may not leave: {reason}{more}; leave it out, or have the coordinator publish another policy"
        raise PolicyViolationError(msg, refused=list(refused)[:100])


def require_architecture(manifest: ContributionManifest, base: BaseManifest) -> None:
    """Require that weights and taps fit the base model: names, shapes, dtypes, widths.

    Raises:
        ArchitectureMismatchError: they do not; the message names the first place.
    """
    known = {tensor.name: tensor for tensor in base.tensors}
    for tensor in manifest.weights.tensors:
        _require_tensor(tensor, known)
    for tap in manifest.statistics.taps if manifest.statistics else ():
        for layer in tap.layers:
            _require_layer(layer, tap, known)


def _require_tensor(tensor: TensorInfo, known: Mapping[str, TensorInfo]) -> None:
    expected = known.get(tensor.name)
    if expected is None:
        msg = f"{tensor.name} is not a tensor of the base model; contribute a model that was fine-tuned from it"
        raise ArchitectureMismatchError(msg, tensor=tensor.name)
    if tensor.shape != expected.shape:
        msg = f"{tensor.name} is {list(tensor.shape)}, the base model's is {list(expected.shape)}"
        raise ArchitectureMismatchError(msg, tensor=tensor.name)
    if tensor.dtype not in CONTRIBUTED_DTYPES or expected.dtype not in CONTRIBUTED_DTYPES | {"F64"}:
        odd = tensor.dtype if tensor.dtype not in CONTRIBUTED_DTYPES else f"{expected.dtype} in the base model"
        msg = (
            f"{tensor.name} is {odd}; weights travel as {', '.join(sorted(CONTRIBUTED_DTYPES))}, the rest is the base's"
        )
        raise ArchitectureMismatchError(msg, tensor=tensor.name)


def _require_layer(layer: LayerInfo, tap: TapInfo, known: Mapping[str, TensorInfo]) -> None:
    expected = known.get(layer.weight)
    if expected is None:
        msg = f"tap {tap.name}: the layer {layer.weight} is not a tensor of the base model"
        raise ArchitectureMismatchError(msg, tap=tap.name)
    inputs = {"out_in": 1, "in_out": 0}[layer.layout]
    if len(expected.shape) != 2 or expected.shape[inputs] != tap.width:  # noqa: PLR2004 - a matrix
        msg = (
            f"tap {tap.name} is {tap.width} wide, which does not fit {layer.weight}, "
            f"stored {layer.layout} as {list(expected.shape)}"
        )
        raise ArchitectureMismatchError(msg, tap=tap.name)
