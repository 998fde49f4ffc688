"""The steps of a merge plan: what is read, how it is combined, which tensors come out. Values only."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gramfuse_shared.contract.calibration import CalibrationHistograms
from gramfuse_shared.contract.manifest import TapInfo, TensorInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import packed_length
from gramfuse_shared.fusion.methods.method import DeltaSettings, MethodSettings

Source: TypeAlias = str | None
"""A member's key, or None for the base model."""

Layout: TypeAlias = Literal["out_in", "in_out"]
Precision: TypeAlias = Literal["float32", "float64"]

SUM_BYTES: Final = DTYPE_BYTES["F64"]
"""Ready sums are float64."""


def tensor_bytes(tensor: TensorInfo) -> int:
    """Bytes of a tensor as stored."""
    count = 1
    for size in tensor.shape:
        count *= size
    return count * DTYPE_BYTES[tensor.dtype]


@dataclass(frozen=True, slots=True)
class FisherTotals:
    """Of a member's Fisher information: the examples it was summed over, and the norm that the recipe divides by.

    It is that of all that the merge takes, or of this parameter's alone.
    """

    examples: int
    norm: float


@dataclass(frozen=True, slots=True)
class Term:
    """One member of a merge with its weight cᵢ > 0; for linears also its tap, None where its precision is estimated.

    For what is weighed element by element, what its Fisher information was summed over.
    """

    key: str
    weight: float
    tap: TapInfo | None = None
    fisher: FisherTotals | None = None


@dataclass(frozen=True, slots=True)
class ReadySum:
    """In place of terms: sums that contributions added up to elsewhere. `weight` is Σcᵢ, `tap` what ΣPᵢ is named."""

    key: str
    weight: float
    tap: str | None = None


@dataclass(frozen=True, slots=True)
class _OfOneParameter:
    """A step that one tensor comes out of."""

    output: TensorInfo

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensor that comes out."""
        return (self.output,)


@dataclass(frozen=True, slots=True)
class CopyStep(_OfOneParameter):
    """A tensor taken over from one source, converted where the output's dtype differs."""

    source: Source
    stored: TensorInfo
    reason: str | None = None

    @property
    def input_bytes(self) -> int:
        """Bytes that are read."""
        return tensor_bytes(self.stored)


@dataclass(frozen=True, slots=True)
class AverageStep(_OfOneParameter):
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
class DiagonalStep(_OfOneParameter):
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
class DeltaStep(_OfOneParameter):
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


@dataclass(frozen=True, slots=True)
class HeadPart:
    """Rows of a head that are refit from the same members' answers; each term's tap names its statistics."""

    rows: tuple[int, ...]
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class HeadStep:
    """A merged model's head, refit in float64: rows of no part stay as the model has them.

    Attributes:
        weight: the tensor [labels, d] that comes out.
        bias: the tensor [labels] that comes out, None for a layer without one.
        stored: both as the model has them.
        parts: which rows are refit from whom.
        ridge: λ of `fusion.head`.
        by_rows: whether each row of the statistics counts the same, else each member.
        reason: how many rows are not refit from everybody's answers; None where all are.
    """

    weight: TensorInfo
    bias: TensorInfo | None
    stored: tuple[TensorInfo, ...]
    parts: tuple[HeadPart, ...]
    ridge: float
    by_rows: bool
    reason: str | None = None

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that come out, in this order."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def width(self) -> int:
        """Features that the head reads, and the constant."""
        return self.weight.shape[1] + 1

    @property
    def input_bytes(self) -> int:
        """Bytes that are read: the head, and for each part of each member a packed Gram matrix and a product."""
        read = packed_length(self.width) + self.width * self.weight.shape[0]
        terms = sum(len(part.terms) for part in self.parts)
        return sum(map(tensor_bytes, self.stored)) + terms * read * DTYPE_BYTES["F32"]


@dataclass(frozen=True, slots=True)
class RefitLayer:
    """A linear layer of a merged model that is refit: its weight, its bias if it has one, and what stands for both.

    `stored` are they as the model has them, `outputs` as they come out.
    """

    layout: Layout
    stored: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def weight(self) -> str:
        """The weight's name."""
        return self.stored[0].name

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias."""
        return len(self.stored) > 1

    @property
    def height(self) -> int:
        """Outputs of the layer."""
        return self.stored[0].shape[0 if self.layout == "out_in" else 1]


@dataclass(frozen=True, slots=True)
class LayersStep:
    """Linear layers of a merged model that are refit in float64 from the same taps, all with a bias or none.

    Attributes:
        layers: the layers.
        terms: whose statistics; each names the tap that the layers read.
        width: features that the layers read, and the constant.
        ridge: λ of `fusion.refit`.
        by_rows: whether each row of the statistics counts the same, else each member.
    """

    layers: tuple[RefitLayer, ...]
    terms: tuple[Term, ...]
    width: int
    ridge: float
    by_rows: bool

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that come out, in this order."""
        return tuple(output for layer in self.layers for output in layer.outputs)

    @property
    def input_bytes(self) -> int:
        """Bytes that are read: the layers, and of each member a packed Gram matrix and every layer's product."""
        stored = sum(tensor_bytes(tensor) for layer in self.layers for tensor in layer.stored)
        read = packed_length(self.width) + self.width * sum(layer.height for layer in self.layers)
        return stored + len(self.terms) * read * DTYPE_BYTES["F32"]


@dataclass(frozen=True, slots=True)
class ShiftStep(_OfOneParameter):
    """A merged model's bias, shifted by what the sums of score histograms say; `members` counts whose they are."""

    stored: TensorInfo
    histograms: CalibrationHistograms
    members: int
    reason: str | None = None

    @property
    def input_bytes(self) -> int:
        """Bytes that are read."""
        return tensor_bytes(self.stored)


WholeStep: TypeAlias = CopyStep | AverageStep | DiagonalStep | DeltaStep | GramStep
"""A step that merges every row of its parameters from the same members."""


@dataclass(frozen=True, slots=True)
class RowPart:
    """Rows of a parameter, along its first dimension, and the step of one output that they are taken from."""

    rows: tuple[int, ...]
    step: WholeStep


@dataclass(frozen=True, slots=True)
class RowsStep(_OfOneParameter):
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

RefitStep: TypeAlias = HeadStep | LayersStep | ShiftStep
"""A step that changes a merged model by answers, and merges no weights."""

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
