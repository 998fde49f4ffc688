"""The steps that change a merged model by the answers to a request, and merge no weights. Values only."""

from dataclasses import dataclass
from typing import TypeAlias

from gramfuse_shared.contract.calibration import (
    BINS,
    HOLDERS_SUM,
    LABELLED_SUM,
    OTHERS_SUM,
    CalibrationHistograms,
    ScoreKind,
)
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import packed_length
from gramfuse_shared.merging.terms import SUM_BYTES, Layout, OfOneParameter, Term, tensor_bytes


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
        summed: how many organizations' answers the one term is the sum of, which is in float64; None of single ones.
    """

    weight: TensorInfo
    bias: TensorInfo | None
    stored: tuple[TensorInfo, ...]
    parts: tuple[HeadPart, ...]
    ridge: float
    by_rows: bool
    reason: str | None = None
    summed: int | None = None

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
        value_bytes = DTYPE_BYTES["F32"] if self.summed is None else SUM_BYTES
        return sum(map(tensor_bytes, self.stored)) + terms * read * value_bytes


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
class SummedHistograms:
    """Histograms that were added up elsewhere, in the file of sums under `key`, and how many counted each label.

    Labels of which fewer than `minimum_holders` did are not shifted.
    """

    key: str
    score: ScoreKind
    labels: int
    minimum_holders: int

    @property
    def tensors(self) -> tuple[tuple[str, int], ...]:
        """Names of the tensors, and how many values each has."""
        counts = self.labels * BINS
        return (LABELLED_SUM, counts), (OTHERS_SUM, counts), (HOLDERS_SUM, self.labels)


@dataclass(frozen=True, slots=True)
class ShiftStep(OfOneParameter):
    """A merged model's bias, shifted by what the sums of score histograms say; `members` counts whose they are."""

    stored: TensorInfo
    histograms: CalibrationHistograms | SummedHistograms
    members: int
    reason: str | None = None

    @property
    def input_bytes(self) -> int:
        """Bytes that are read."""
        summed = self.histograms.tensors if isinstance(self.histograms, SummedHistograms) else ()
        return tensor_bytes(self.stored) + SUM_BYTES * sum(count for _, count in summed)


RefitStep: TypeAlias = HeadStep | LayersStep | ShiftStep
"""A step that changes a merged model by answers, and merges no weights."""
