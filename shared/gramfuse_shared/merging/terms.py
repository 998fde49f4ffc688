"""What steps of a merge plan are made of: whose tensors are read, and what of each member counts how. Values only."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gramfuse_shared.contract.manifest import TapInfo, TensorInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES

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
class OfOneParameter:
    """A step that one tensor comes out of."""

    output: TensorInfo

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensor that comes out."""
        return (self.output,)
