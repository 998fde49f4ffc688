"""What a push sends and what stays at home: every decision, summed up by kind, as text for people and as JSON."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from gramfuse.naming import name_patterns, number_ranges
from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.manifest import (
    FisherParameter,
    LeftOut,
    StatisticsEncoding,
    TapInfo,
    TensorInfo,
    TrainedLabels,
)
from gramfuse_shared.contract.policy import TensorRole
from gramfuse_shared.contract.privacy import COVERS, Noised
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import encoded_bytes
from gramfuse_shared.reporting.audits import summary_told
from gramfuse_shared.units import format_bytes

WEIGHTS_FILE_NAME: Final = "weights.safetensors"
STATISTICS_FILE_NAME: Final = "statistics.safetensors"
FISHER_FILE_NAME: Final = "fisher.safetensors"

Group = Literal["embedding", "head", "body", "tap", "fisher"]

_TITLES: Final[dict[Group, str]] = {
    "body": "weights",
    "embedding": "embeddings",
    "head": "task head",
    "tap": "statistics",
    "fisher": "Fisher information",
}


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
    encoding: StatisticsEncoding = "float32"

    @property
    def bytes(self) -> int:
        """Length of the encoded Gram matrix."""
        return encoded_bytes(self.info.width, self.encoding)


@dataclass(frozen=True, slots=True)
class FisherDecision:
    """A parameter's Fisher information: whether it leaves, and if not, why."""

    info: FisherParameter
    stays_because: str | None

    @property
    def bytes(self) -> int:
        """Length of the tensor."""
        return math.prod(self.info.shape) * DTYPE_BYTES["F32"]


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Tensors or taps that share a fate: their kind, the reason why they stay (None: they leave), names and bytes."""

    group: Group
    stays_because: str | None
    names: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class ContributionPlan:
    """What a push will send and what stays at home, decided before a byte is read.

    `left_out` is "base" for an adapter, and `untouched` counts the base's tensors that it does not change. `noised`
    says how the statistics were noised, if they were. With `summed` only the manifest leaves, and the rest is later
    summed in secret. With `shares_audit` the policy has `audit` leave, too: None until the audit was made.
    """

    weights: tuple[TensorDecision, ...]
    taps: tuple[TapDecision, ...]
    warnings: tuple[str, ...]
    labels: TrainedLabels | None = None
    left_out: LeftOut = "unknown"
    untouched: int = 0
    fisher: tuple[FisherDecision, ...] = ()
    noised: Noised | None = None
    summed: bool = False
    shares_audit: bool = False
    audit: AuditSummary | None = None

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
    def leaving_fisher(self) -> tuple[FisherDecision, ...]:
        """The parameters whose Fisher information leaves, by name, which is their order in the file that carries it."""
        leaving = [decision for decision in self.fisher if decision.stays_because is None]
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

    @property
    def measured_layers(self) -> frozenset[str]:
        """Linear weights that leave and whose inputs were measured."""
        leaving = {weight.info.name for weight in self.leaving_weights}
        return frozenset(_layers_of(self.taps)) & leaving

    @property
    def fused_layers(self) -> frozenset[str]:
        """Linear weights that leave together with the statistics of their inputs, so that RegMean can merge them."""
        return self.measured_layers & frozenset(_layers_of(self.leaving_taps))

    def __str__(self) -> str:
        """Tell the plan to people: every group that leaves, what stays with the reason, every warning."""
        lines = list(self._leaving_lines())
        staying = self.staying()
        lines.append("Stays here:" if staying else "Stays here: your texts, and nothing else of these files")
        for group in staying:
            lines.append(f"  {_title(group)}: {group.stays_because}")
            lines += [f"    {line}" for line in name_patterns(group.names)]
        if self.left_out == "base":
            lines.append(
                "Of an adapter, the weights that it changes leave, each in its whole size; that the other "
                f"{self.untouched} tensors are the base's own is told"
            )
        if self.noised is not None and self.leaving_taps:
            lines.append(
                f"The statistics are noised: {self.noised}, of {self.noised.examples:,} texts. {COVERS}: these leave "
                "as they are, and have seen your texts too"
            )
        if self.fused_layers:
            fused, measured = len(self.fused_layers), len(self.measured_layers)
            rest = "" if fused == measured else f"; for everybody, the other {measured - fused} can only be averaged"
            lines.append(f"RegMean can merge {fused} of your {measured} measured linear layers{rest}")
        if self.leaving_fisher:
            weighed, weights = len(self.leaving_fisher), len(self.leaving_weights)
            lines.append(f"fisher can weigh {weighed} of your {weights} leaving tensors element by element")
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        labels = {} if self.labels is None else {"labels": self.labels.model_dump(mode="json")}
        noised = {} if self.noised is None else {"noised": self.noised.model_dump(mode="json") | {"notice": COVERS}}
        return (
            labels
            | noised
            | {
                "leaves": [_summary_json(group) for group in self.leaving()],
                "stays": [_summary_json(group) for group in self.staying()],
                "layers": {"measured": len(self.measured_layers), "regmean": len(self.fused_layers)},
                "left_out": self.left_out,
                "warnings": list(self.warnings),
                "bytes": self.leaving_bytes,
                **({"summed": True} if self.summed else {}),
                **({"audit_summary": self._audit_json()} if self.shares_audit else {}),
            }
        )

    def _leaving_lines(self) -> Iterator[str]:
        if self.summed:
            yield "Leaves this machine: the manifest, with names, shapes, row counts and digests of what follows"
            yield f"Summed in secret, in a sum that you join later ({format_bytes(self.leaving_bytes)}):"
        else:
            yield f"Leaves this machine ({format_bytes(self.leaving_bytes)}):"
        for name, groups in _files(self.leaving()):
            yield f"  {name}, {format_bytes(sum(group.bytes for group in groups))}"
            for group in groups:
                yield from (f"    {line}" for line in _group_lines(group))
        if self.labels is not None:
            yield f"  manifest: {_labels_told(self.labels)}"
        if self.shares_audit:
            yield f"Also leaves, for the project's members and the server's operators: {self._audit_told()}"

    def _audit_told(self) -> str:
        said = "how the audit comes out, in words" if self.audit is None else f"audit, {summary_told(self.audit)}"
        return f"{said} (policy: audit = shared)"

    def _audit_json(self) -> dict[str, Any] | None:
        return None if self.audit is None else self.audit.model_dump(mode="json")

    def _groups(self) -> list[GroupSummary]:
        members: dict[tuple[Group, str | None], list[tuple[str, int]]] = {}
        for weight in self.weights:
            members.setdefault((weight.role, weight.stays_because), []).append((weight.info.name, weight.bytes))
        for tap in self.taps:
            members.setdefault(("tap", tap.stays_because), []).append((tap.info.name, tap.bytes))
        for parameter in self.fisher:
            key: tuple[Group, str | None] = ("fisher", parameter.stays_because)
            members.setdefault(key, []).append((parameter.info.name, parameter.bytes))
        return [
            GroupSummary(group, reason, tuple(name for name, _ in items), sum(length for _, length in items))
            for (group, reason), items in members.items()
        ]


def _labels_told(labels: TrainedLabels) -> str:
    ids = ", ".join(number_ranges(labels.trained)) or "none"
    return f"you trained {ids} of the {labels.count} label ids, which tells the server what your texts are about"


def _layers_of(taps: Iterable[TapDecision]) -> Iterator[str]:
    return (layer.weight for tap in taps for layer in tap.info.layers)


def _files(groups: Sequence[GroupSummary]) -> list[tuple[str, list[GroupSummary]]]:
    carriers: dict[Group, str] = {"tap": STATISTICS_FILE_NAME, "fisher": FISHER_FILE_NAME}
    files: dict[str, list[GroupSummary]] = {WEIGHTS_FILE_NAME: [], STATISTICS_FILE_NAME: [], FISHER_FILE_NAME: []}
    for group in groups:
        files[carriers.get(group.group, WEIGHTS_FILE_NAME)].append(group)
    return [(name, members) for name, members in files.items() if members]


def _group_lines(group: GroupSummary) -> list[str]:
    return [_title(group), *(f"  {pattern}" for pattern in name_patterns(group.names))]


def _title(group: GroupSummary) -> str:
    return f"{_TITLES[group.group]} ({len(group.names)}, {format_bytes(group.bytes)})"


def _summary_json(group: GroupSummary) -> dict[str, Any]:
    document: dict[str, Any] = {"group": group.group, "count": len(group.names), "bytes": group.bytes}
    if group.stays_because is not None:
        document["reason"] = group.stays_because
    return {**document, "names": list(group.names)}
