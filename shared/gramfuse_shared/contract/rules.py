"""What a contribution must satisfy before a byte of it travels. The client enforces it first, the server again."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from gramfuse_shared import limits
from gramfuse_shared.contract.fisher_file import tensors_of_fisher
from gramfuse_shared.contract.labels import require_labels
from gramfuse_shared.contract.manifest import (
    BaseManifest,
    ContributionManifest,
    FisherDescription,
    FisherParameter,
    LayerInfo,
    StatisticsSection,
    TapInfo,
    TensorInfo,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.privacy import Noised
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, LENGTH_BYTES, TensorLayout
from gramfuse_shared.contract.scales_file import ScalesMetadata
from gramfuse_shared.contract.statistics_file import tensors_of_statistics
from gramfuse_shared.contract.withholding import explain_obstacle, find_obstacle
from gramfuse_shared.errors import ArchitectureMismatchError, HeaderMalformedError, PolicyViolationError

CONTRIBUTED_DTYPES: Final = frozenset({"F16", "BF16", "F32"})
"""The dtypes in which weights travel; integer tensors and buffers are the base's."""

PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
CODE_SUFFIXES: Final = frozenset({".py", ".pyc", ".so", ".dll", ".dylib", ".sh"})
_TEXT_SECTIONS: Final = ("text_config", "llm_config", "language_config", "decoder")


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return config.json's vocab_size, or that of the text model nested in it."""
    for section in (config, *(config.get(key) for key in _TEXT_SECTIONS)):
        size = section.get("vocab_size") if isinstance(section, Mapping) else None
        if isinstance(size, int) and not isinstance(size, bool) and size >= 1:
            return size
    return None


def require_base(manifest: BaseManifest) -> None:
    """Require that a base model holds neither pickles nor program code, and that its files can hold their tensors.

    Raises:
        PolicyViolationError: a file would run on the participants' machines.
        HeaderMalformedError: a file's length does not fit its tensors.
    """
    for file in manifest.files:
        suffix = PurePosixPath(file.name).suffix.lower()
        if suffix in PICKLE_SUFFIXES | CODE_SUFFIXES:
            kind = "a pickle" if suffix in PICKLE_SUFFIXES else "program code"
            msg = f"{file.name} may be {kind}, which runs where it is loaded; leave it out and save as safetensors"
            raise PolicyViolationError(msg, file=file.name)
        if file.tensors is not None:
            require_length(file.name, file.bytes, [(t.name, t.dtype, t.shape) for t in file.tensors])


def require_length(file: str, file_bytes: int, tensors: Sequence[TensorLayout]) -> None:
    """Require that a safetensors file of these tensors can have this many bytes: values and a header in its bounds.

    Raises:
        HeaderMalformedError: it cannot.
    """
    values = sum(math.prod(shape) * DTYPE_BYTES[dtype] for _, dtype, shape in tensors)
    if not values + LENGTH_BYTES <= file_bytes <= values + LENGTH_BYTES + limits.MAX_HEADER_BYTES:
        msg = f"{file} has {file_bytes} bytes, but its tensors alone take {values}"
        raise HeaderMalformedError(msg)


def why_tensor_stays(tensor: TensorInfo, base: BaseManifest, policy: Policy) -> str | None:
    """Say why the policy keeps a tensor at home; None where it may leave."""
    role = policy.role_of(tensor.name, tensor.shape, base.vocabulary_size)
    if policy.may_leave(role):
        return None
    return {
        "embedding": "the policy uses the base's embeddings (embeddings: base)",
        "head": "the policy keeps task heads private (heads: private)",
    }[role]


def weights_that_may_leave(base: BaseManifest, policy: Policy) -> frozenset[str]:
    """Name the base model's tensors whose fine-tuned values the policy lets leave."""
    return frozenset(tensor.name for tensor in base.tensors if why_tensor_stays(tensor, base, policy) is None)


def why_tap_stays(
    tap: TapInfo, contributed: Collection[str], policy: Policy, *, noised: Noised | None = None
) -> str | None:
    """Say why a tap's statistics stay at home; None where they may leave.

    Args:
        tap: the tap.
        contributed: names of the weights that leave.
        policy: the project's policy.
        noised: under what its statistics were noised. The least number of rows is then no matter: noise hides a single
            text among however many, and few of them make it larger.
    """
    if policy.differential_privacy is not None:
        refused = policy.differential_privacy.why_refused(noised, policy.scales)
        if refused is not None:
            return refused
    obstacle = find_obstacle(tap, contributed, policy, counts_rows=noised is None)
    return None if obstacle is None else explain_obstacle(obstacle, tap, policy)


def why_fisher_stays(
    fisher: FisherDescription, contributed: Collection[str], base: BaseManifest, policy: Policy
) -> dict[str, str | None]:
    """Say of each parameter why its Fisher information stays at home; None where it may leave.

    All of it stays where there were too few examples for the largest of those that could leave: what one example did
    to one parameter is told by all the others too.

    Args:
        fisher: what was measured.
        contributed: names of the weights that leave.
        base: the project's base model.
        policy: the project's policy.
    """
    none_leaves = None
    if "fisher" not in policy.methods:
        none_leaves = "no method of the policy reads Fisher information (methods)"
    elif fisher.collector.labels == "given" and policy.given_labels == "withhold":
        none_leaves = (
            "it was measured with the texts' own labels, and tells how the model does on them (given_labels: "
            "withhold): measure it with sampled ones"
        )
    if none_leaves is not None:
        return dict.fromkeys((parameter.name for parameter in fisher.parameters), none_leaves)
    reasons = {
        parameter.name: _why_parameter_stays(parameter, contributed, base, policy) for parameter in fisher.parameters
    }
    shapes = [parameter.shape for parameter in fisher.parameters if reasons[parameter.name] is None]
    needed = max((policy.minimum_examples(shape) for shape in shapes), default=0)
    too_few = None
    if fisher.distinct_examples < needed:
        too_few = (
            f"it was measured of {fisher.distinct_examples} distinct examples, the policy wants {needed} "
            f"({policy.minimum_rows_per_dimension:g} per dimension of the largest matrix): measure more texts"
        )
    return {name: reason or too_few for name, reason in reasons.items()}


def _why_parameter_stays(
    parameter: FisherParameter, contributed: Collection[str], base: BaseManifest, policy: Policy
) -> str | None:
    role = policy.role_of(parameter.name, parameter.shape, base.vocabulary_size)
    if not policy.may_leave(role):
        kind = {"embedding": "embeddings (embeddings: base)", "head": "task heads (heads: private)"}[role]
        return f"the policy keeps the weights of {kind}, and so what was measured of them"
    if parameter.source != "mixed" and policy.embedding_taps == "withhold":
        fed = "embeddings feed its layer directly" if parameter.source == "embeddings" else "what feeds it is not known"
        return f"{fed}, so it hangs on which tokens the text holds (embedding_taps: withhold)"
    return None if parameter.name in contributed else "its weight does not leave, so nothing could be merged with it"


def require_policy(manifest: ContributionManifest, base: BaseManifest, policy: Policy) -> None:
    """Require that the policy allows everything in the manifest to leave.

    Raises:
        PolicyViolationError: something may not leave; the message names the first and `facts` the first hundred.
        ArchitectureMismatchError: label ids are named that no rows of the contribution belong to.
    """
    contributed = {tensor.name for tensor in manifest.weights.tensors}
    reasons = {tensor.name: why_tensor_stays(tensor, base, policy) for tensor in manifest.weights.tensors}
    if manifest.statistics is not None:
        noised = manifest.statistics.collector.noised
        for tap in manifest.statistics.taps:
            reasons[f"tap {tap.name}"] = why_tap_stays(tap, contributed, policy, noised=noised)
    if manifest.fisher is not None:
        kept = why_fisher_stays(manifest.fisher, contributed, base, policy)
        reasons |= {f"the Fisher information of {name}": reason for name, reason in kept.items()}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    if refused:
        name, reason = next(iter(refused.items()))
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        msg = f"{name} may not leave: {reason}{more}; leave it out, or have the coordinator publish another policy"
        raise PolicyViolationError(msg, refused=list(refused)[:100])
    if manifest.labels is not None:
        require_labels(manifest.labels, contributed, base, policy)


def require_architecture(manifest: ContributionManifest, base: BaseManifest) -> None:
    """Require that weights and statistics fit the base model: names, shapes, dtypes, widths.

    Raises:
        ArchitectureMismatchError: they do not; the message names the first place.
        HeaderMalformedError: a file's length does not fit its tensors.
    """
    weights, fisher = manifest.weights, manifest.fisher
    known = {tensor.name: tensor for tensor in base.tensors}
    for tensor in weights.tensors:
        _require_tensor(tensor, known)
        if weights.encoding == "bf16-delta" and tensor.dtype != "BF16":
            msg = f"{tensor.name} is {tensor.dtype}; differences from the base model travel as BF16"
            raise ArchitectureMismatchError(msg, tensor=tensor.name)
    require_length(weights.file.name, weights.file.bytes, [(t.name, t.dtype, t.shape) for t in weights.tensors])
    if fisher is not None:
        for parameter in fisher.parameters:
            _require_parameter(parameter, known)
        require_length(fisher.file.name, fisher.file.bytes, tensors_of_fisher(fisher.parameters))
    if manifest.statistics is not None:
        require_statistics_architecture(manifest.statistics, base)


def require_statistics_architecture(statistics: StatisticsSection, base: BaseManifest) -> None:
    """Require that taps fit the base model's weights, and the file's length its tensors. Raises as above."""
    known = {tensor.name: tensor for tensor in base.tensors}
    constants = 0 if statistics.kind == "gram" else 1  # behind the features
    for tap in statistics.taps:
        for layer in tap.layers:
            _require_layer(layer, tap, tap.width - constants, known)
            outputs = known[layer.weight].shape[0 if layer.layout == "out_in" else 1]
            if statistics.labels not in {None, outputs}:
                msg = f"{layer.weight} has {outputs} outputs, and its statistics are of {statistics.labels} labels"
                raise ArchitectureMismatchError(msg, tap=tap.name)
            if layer.outputs not in {None, outputs}:
                msg = f"{layer.weight} has {outputs} outputs, and its product {layer.outputs} columns"
                raise ArchitectureMismatchError(msg, tap=tap.name)
    require_length(statistics.file.name, statistics.file.bytes, tensors_of_statistics(statistics))


def require_scales_architecture(scales: ScalesMetadata, base: BaseManifest) -> None:
    """Require that a scales file was measured on this base model, at taps of its weights.

    Raises:
        ArchitectureMismatchError: it was not; the message names the first place.
    """
    if scales.base != base.content_digest():
        msg = "the scales were measured on another base model; collect them on this one"
        raise ArchitectureMismatchError(msg)
    known = {tensor.name: tensor for tensor in base.tensors}
    for tap in scales.taps:
        for layer in tap.layers:
            _require_layer(layer, tap, tap.width, known)


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


def _require_parameter(parameter: FisherParameter, known: Mapping[str, TensorInfo]) -> None:
    expected = known.get(parameter.name)
    if expected is None or parameter.shape != expected.shape:
        found = "no such tensor" if expected is None else f"one of {list(expected.shape)}"
        msg = f"the Fisher information of {parameter.name} is {list(parameter.shape)}, the base model has {found}"
        raise ArchitectureMismatchError(msg, tensor=parameter.name)


def _require_layer(layer: LayerInfo, tap: TapInfo, width: int, known: Mapping[str, TensorInfo]) -> None:
    expected = known.get(layer.weight)
    if expected is None:
        msg = f"tap {tap.name}: the layer {layer.weight} is not a tensor of the base model"
        raise ArchitectureMismatchError(msg, tap=tap.name)
    inputs = {"out_in": 1, "in_out": 0}[layer.layout]
    if len(expected.shape) != 2 or expected.shape[inputs] != width:  # noqa: PLR2004 - a matrix
        msg = (
            f"tap {tap.name} is {width} wide, which does not fit {layer.weight}, "
            f"stored {layer.layout} as {list(expected.shape)}"
        )
        raise ArchitectureMismatchError(msg, tap=tap.name)
