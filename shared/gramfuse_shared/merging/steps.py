"""The steps of a merge plan: what is read, how it is combined, which tensors come out. Values only."""

from dataclasses import dataclass
from typing import TypeAlias

from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import packed_length
from gramfuse_shared.fusion.methods.method import DeltaSettings, MethodSettings
from gramfuse_shared.merging.refit_steps import RefitStep
from gramfuse_shared.merging.terms import (
    SUM_BYTES,
    Layout,
    OfOneParameter,
    Precision,
    ReadySum,
    Source,
    Term,
    tensor_bytes,
)


@dataclass(frozen=True, slots=True)
class CopyStep(OfOneParameter):
    """A tensor taken over from one source, converted where the output's dtype differs."""

    source: Source
    stored: TensorInfo
    reason: str | None = None

    @property
    def input_bytes(self) -> int:
        """Bytes that are read."""
        return tensor_bytes(self.stored)


@dataclass(frozen=True, slots=True)
class AverageStep(OfOneParameter):
    """A parameter merged element by element: W_ref + ΣcᵢDᵢ/Σcᵢ. `reason`: why a linear weight is here."""

    terms: tuple[Term, ...] | ReadySum
    reference: Source
    compute: Precision
    stored_bytes: int
    reason: str | None = None

    @property
    def input_bytes(self) -> int:
        """Bytes that are read."""
        return self.stored_bytes


@dataclass(frozen=True, slots=True)
class DiagonalStep(OfOneParameter):
    """A parameter of which every member sent Fisher information: each element is weighed by itself."""

    terms: tuple[Term, ...] | ReadySum
    reference: Source
    settings: MethodSettings
    compute: Precision
    stored_bytes: int

    @property
    def input_bytes(self) -> int:
        """Bytes that are read: the weights, and per member a float32 for each element."""
        if isinstance(self.terms, ReadySum):
            return self.stored_bytes
        count = tensor_bytes(self.output) // DTYPE_BYTES[self.output.dtype]
        return self.stored_bytes + len(self.terms) * count * DTYPE_BYTES["F32"]


@dataclass(frozen=True, slots=True)
class DeltaStep(OfOneParameter):
    """A parameter to which a method adds what the members' differences from the base make together.

    `stored` is the base's tensor; every member's is read in each of the method's turns.
    """

    terms: tuple[Term, ...]
    stored: TensorInfo
    settings: DeltaSettings
    turns: int
    compute: Precision
    stored_bytes: int

    @property
    def input_bytes(self) -> int:
        """Bytes that are read."""
        return tensor_bytes(self.stored) + self.turns * self.stored_bytes


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear weight in a group: the tensor that comes out and how it is stored."""

    output: TensorInfo
    layout: Layout

    @property
    def height(self) -> int:
        """Outputs of the layer."""
        return self.output.shape[0 if self.layout == "out_in" else 1]


@dataclass(frozen=True, slots=True)
class GramStep:
    """Linear weights that every member feeds from one tap, with the same weights and α: one factorization.

    Terms without a tap come last, and around the base: their precisions are taken from their differences to it, by the
    method itself, or in the size of the measured ones. A step without any tap is of one linear weight.
    """

    linears: tuple[Linear, ...]
    terms: tuple[Term, ...] | ReadySum
    reference: Source
    width: int
    settings: MethodSettings
    compute: Precision
    stored_bytes: int

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that come out, in this order."""
        return tuple(linear.output for linear in self.linears)

    @property
    def reads_taps(self) -> bool:
        """Whether any of it was measured."""
        return isinstance(self.terms, ReadySum) or any(term.tap is not None for term in self.terms)

    @property
    def estimated(self) -> tuple[str, ...]:
        """The keys of the members whose precision is estimated."""
        return () if isinstance(self.terms, ReadySum) else tuple(term.key for term in self.terms if term.tap is None)

    @property
    def height(self) -> int:
        """Rows of the stacked right-hand sides."""
        return sum(linear.height for linear in self.linears)

    @property
    def input_bytes(self) -> int:
        """Bytes that are read: the weights, and one packed Gram matrix for each member that measured the tap."""
        gram = packed_length(self.width)
        if isinstance(self.terms, ReadySum):
            return self.stored_bytes + gram * SUM_BYTES
        measured = sum(term.tap is not None for term in self.terms)
        return self.stored_bytes + measured * gram * DTYPE_BYTES["F32"]


WholeStep: TypeAlias = CopyStep | AverageStep | DiagonalStep | DeltaStep | GramStep
"""A step that merges every row of its parameters from the same members."""


@dataclass(frozen=True, slots=True)
class RowPart:
    """Rows of a parameter, along its first dimension, and the step of one output that they are taken from."""

    rows: tuple[int, ...]
    step: WholeStep


@dataclass(frozen=True, slots=True)
class RowsStep(OfOneParameter):
    """A head's parameter whose rows were trained by different members: each part is a merge of those alone.

    `reason` tells how many rows are concerned.
    """

    parts: tuple[RowPart, ...]
    reason: str

    @property
    def input_bytes(self) -> int:
        """Bytes that are read."""
        return sum(part.step.input_bytes for part in self.parts)


MergeStep: TypeAlias = WholeStep | RowsStep
"""A step that merges weights."""

Step: TypeAlias = MergeStep | RefitStep


@dataclass(frozen=True, slots=True)
class Task:
    """One shard of the output: the unit of work, of cancellation and of progress."""

    index: int
    file_name: str
    steps: tuple[Step, ...]

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The shard's tensors in file order."""
        return tuple(output for step in self.steps for output in step.outputs)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The shard's tensors by name, in file order."""
        return tuple(output.name for output in self.outputs)

    @property
    def input_bytes(self) -> int:
        """Bytes that the task reads; `execute_task` reports them as they are read."""
        return sum(step.input_bytes for step in self.steps)

    @property
    def output_bytes(self) -> int:
        """Bytes of the shard's tensors."""
        return sum(tensor_bytes(output) for output in self.outputs)
