"""Decide what of a model and its statistics may leave, and say why the rest stays. Pure: headers in, a plan out."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gramfuse_shared.contract.manifest import BaseManifest, LayerInfo, TapInfo, TensorInfo
from gramfuse_shared.contract.policy import Policy, TensorRole
from gramfuse_shared.contract.rules import CONTRIBUTED_DTYPES, why_tap_stays, why_tensor_stays
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import StatisticsMetadata, packed_length
from gramfuse_shared.errors import ArchitectureMismatchError, PolicyViolationError

Group = Literal["embedding", "head", "body", "tap"]


@dataclass(frozen=True, slots=True)
class TensorDecision:
    """A weight: whether it leaves, and if not, why."""

    info: TensorInfo
    role: TensorRole
    stays_because: str | None

    @property
    def bytes(self) -> int:
        """Length of the tensor."""
        return math.prod(self.info.shape) * DTYPE_BYTES[self.info.dtype]


@dataclass(frozen=True, slots=True)
class TapDecision:
    """A tap: whether its Gram matrix leaves, for which layers, and if not, why."""

    info: TapInfo
    stays_because: str | None

    @property
    def bytes(self) -> int:
        """Length of the packed Gram matrix."""
        return 4 * packed_length(self.info.width)


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Tensors or taps that share a fate: their kind, the reason why they stay (None: they leave), names and bytes."""

    group: Group
    stays_because: str | None
    names: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class ContributionPlan:
    """What a push will send and what stays at home, decided before a byte is read."""

    weights: tuple[TensorDecision, ...]
    taps: tuple[TapDecision, ...]
    warnings: tuple[str, ...]

    @property
    def leaving_weights(self) -> tuple[TensorDecision, ...]:
        """The weights that leave, in the order of the file that carries them: widest dtype first, then by name.

        The order is the reference library's, keeps every tensor aligned, and does not depend on how the model was
        sharded.
        """
        leaving = [decision for decision in self.weights if decision.stays_because is None]
        return tuple(sorted(leaving, key=lambda d: (-DTYPE_BYTES[d.info.dtype], d.info.name)))

    @property
    def leaving_taps(self) -> tuple[TapDecision, ...]:
        """The taps that leave, by name, which is their order in the file that carries them."""
        leaving = [decision for decision in self.taps if decision.stays_because is None]
        return tuple(sorted(leaving, key=lambda d: d.info.name))

    @property
    def leaving_bytes(self) -> int:
        """Bytes of weights and statistics that leave, headers apart."""
        return sum(group.bytes for group in self.leaving())

    def leaving(self) -> tuple[GroupSummary, ...]:
        """Sum up what leaves, by kind."""
        return tuple(group for group in self._groups() if group.stays_because is None)

    def staying(self) -> tuple[GroupSummary, ...]:
        """Sum up what stays, by kind and reason."""
        return tuple(group for group in self._groups() if group.stays_because is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "leaves": [_summary_json(group) for group in self.leaving()],
            "stays": [_summary_json(group) for group in self.staying()],
            "warnings": list(self.warnings),
            "bytes": self.leaving_bytes,
        }

    def _groups(self) -> list[GroupSummary]:
        members: dict[tuple[Group, str | None], list[tuple[str, int]]] = {}
        for weight in self.weights:
            members.setdefault((weight.role, weight.stays_because), []).append((weight.info.name, weight.bytes))
        for tap in self.taps:
            members.setdefault(("tap", tap.stays_because), []).append((tap.info.name, tap.bytes))
        return [
            GroupSummary(group, reason, tuple(name for name, _ in items), sum(length for _, length in items))
            for (group, reason), items in members.items()
        ]


def plan_contribution(
    tensors: Iterable[TensorInfo],
    statistics: StatisticsMetadata | None,
    base: BaseManifest,
    policy: Policy,
    *,
    changed: Collection[str] | None = None,
) -> ContributionPlan:
    """Decide what leaves: what the policy allows, the base model knows and the merge can use; nothing else.

    Args:
        tensors: the tuned checkpoint's tensors.
        statistics: metadata of the statistics file, or None to contribute weights alone.
        base: the project's base model.
        policy: the project's policy.
        changed: names of the tensors whose values differ from the base's, where these could be compared.

    Raises:
        ArchitectureMismatchError: names, shapes, dtypes or statistics belong to another model.
        PolicyViolationError: nothing may leave.
    """
    expected = {tensor.name: tensor for tensor in base.tensors}
    weights = tuple(
        _decide_weight(tensor, expected.get(tensor.name), base, policy)
        for tensor in sorted(tensors, key=lambda tensor: tensor.name)
    )
    leaving = {weight.info.name: weight.info for weight in weights if weight.stays_because is None}
    if not leaving:
        msg = "the policy lets no tensor of this model leave, so there is nothing to contribute"
        raise PolicyViolationError(msg)
    taps: tuple[TapDecision, ...] = ()
    if statistics is not None:
        _require_same_base(statistics, base)
        ordered = sorted(statistics.taps, key=lambda tap: tap.name)
        taps = tuple(_decide_tap(tap, leaving, expected, policy) for tap in ordered)
    warnings = tuple(_warnings(weights, taps, expected, policy, changed=changed, measured=statistics is not None))
    return ContributionPlan(weights, taps, warnings)


def embedding_names(tensors: Iterable[TensorInfo], base: BaseManifest, policy: Policy) -> tuple[str, ...]:
    """Name the tensors that would be replaced by the base's, and are worth comparing with it."""
    if policy.embeddings != "base":
        return ()
    known = {tensor.name: tensor for tensor in base.tensors}
    return tuple(
        tensor.name
        for tensor in tensors
        if policy.role_of(tensor.name, tensor.shape, base.vocabulary_size) == "embedding"
        and known.get(tensor.name) == tensor
    )


def _decide_weight(
    tensor: TensorInfo, expected: TensorInfo | None, base: BaseManifest, policy: Policy
) -> TensorDecision:
    role = policy.role_of(tensor.name, tensor.shape, base.vocabulary_size)
    reason = why_tensor_stays(tensor, base, policy)
    if reason is not None:
        return TensorDecision(tensor, role, reason)
    if tensor.dtype not in CONTRIBUTED_DTYPES:
        return TensorDecision(tensor, role, f"{tensor.dtype} values are not merged, the base's are used")
    if expected is None:
        msg = (
            f"{tensor.name} is not in the base model: fine-tune the project's own base "
            "(`gramfuse project base pull`) with the same task class"
        )
        raise ArchitectureMismatchError(msg, tensor=tensor.name)
    if tensor.shape != expected.shape:
        msg = f"{tensor.name} is {list(tensor.shape)}, the project's base has {list(expected.shape)}"
        raise ArchitectureMismatchError(msg, tensor=tensor.name)
    return TensorDecision(tensor, role, None)


def _decide_tap(
    tap: TapInfo, leaving: Mapping[str, TensorInfo], expected: Mapping[str, TensorInfo], policy: Policy
) -> TapDecision:
    for layer in tap.layers:
        _require_layer_reads_tap(layer, tap, expected)
    layers = tuple(layer for layer in tap.layers if layer.weight in leaving)
    sent = tap.model_copy(update={"layers": layers}) if layers else tap
    if "regmean" not in policy.methods:
        return TapDecision(sent, "no method of the policy uses statistics")
    return TapDecision(sent, why_tap_stays(sent, leaving.keys(), policy))


def _require_same_base(statistics: StatisticsMetadata, base: BaseManifest) -> None:
    fingerprint = base.content_digest()
    if statistics.base is not None and statistics.base != fingerprint:
        msg = (
            f"the statistics were measured for the base model {statistics.base[:12]}…, the project's is "
            f"{fingerprint[:12]}…: measure the model that was tuned from this project's base"
        )
        raise ArchitectureMismatchError(msg)


def _require_layer_reads_tap(layer: LayerInfo, tap: TapInfo, expected: Mapping[str, TensorInfo]) -> None:
    weight = expected.get(layer.weight)
    if weight is None:
        return  # a head or a tied weight that the base does not store: it stays at home in any case
    inputs = weight.shape[-1] if layer.layout == "out_in" else weight.shape[0]
    if len(weight.shape) != 2 or inputs != tap.width:  # noqa: PLR2004 - a matrix
        msg = f"tap {tap.name} has width {tap.width}, but {layer.weight} is {list(weight.shape)} in the base model"
        raise ArchitectureMismatchError(msg, tap=tap.name, tensor=layer.weight)


def _warnings(
    weights: Sequence[TensorDecision],
    taps: Sequence[TapDecision],
    expected: Mapping[str, TensorInfo],
    policy: Policy,
    *,
    changed: Collection[str] | None,
    measured: bool,
) -> Iterator[str]:
    yield from _embedding_warnings(weights, policy, changed)
    missing = sorted(expected.keys() - {weight.info.name for weight in weights})
    if missing:
        yield f"not in your model, so the base's values stand: {_few(missing, 'tensor')}"
    if not measured and "regmean" in policy.methods:
        yield "no statistics: every layer of yours is averaged, also in a RegMean merge"
    advised = [
        tap.info.name
        for tap in taps
        if tap.stays_because is None and tap.info.distinct_rows < policy.advised_rows_per_dimension * tap.info.width
    ]
    if advised:
        yield (
            f"fewer than {policy.advised_rows_per_dimension:g} distinct rows per dimension at "
            f"{_few(advised, 'tap')}: few rows reveal more of each text; measure more examples"
        )
    if any(tap.stays_because is None and tap.info.source != "mixed" for tap in taps):
        yield "taps fed by embeddings leave: they reveal the token counts of your text (policy: embedding_taps = send)"


def _embedding_warnings(
    weights: Sequence[TensorDecision], policy: Policy, changed: Collection[str] | None
) -> Iterator[str]:
    embeddings = [weight.info.name for weight in weights if weight.role == "embedding"]
    if not embeddings:
        return
    if policy.embeddings == "average":
        yield "embeddings leave: they reveal which tokens your text holds (policy: embeddings = average)"
    elif changed is None:
        yield (
            "whether your embeddings were tuned is not known here: if they were, what they learned is lost, because "
            "the base's are used; give the base's folder to compare"
        )
    elif lost := [name for name in embeddings if name in changed]:
        yield (
            f"you tuned {_few(lost, 'embedding tensor')}, and what they learned is lost: the merged model has the "
            "base's, to which your other layers were not fitted. Freeze the embeddings while fine-tuning"
        )


def _few(names: Sequence[str], what: str) -> str:
    """Write a number of things with the first names: 5 taps (a, b, c, …)."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")  # noqa: PLR2004 - enough to recognize
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({shown})"


def _summary_json(group: GroupSummary) -> dict[str, Any]:
    document: dict[str, Any] = {"group": group.group, "count": len(group.names), "bytes": group.bytes}
    if group.stays_because is not None:
        document["reason"] = group.stays_because
    return {**document, "names": list(group.names)}
