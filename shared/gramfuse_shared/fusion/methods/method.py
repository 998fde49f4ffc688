"""The interface of a merge method of the precision form."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from gramfuse_shared.fusion.precision import Precision


@dataclass(frozen=True, slots=True)
class Gram:
    """One contribution's statistics of a tap: G = XᵀX packed, float32, over `rows` rows of `width` features."""

    packed: torch.Tensor
    width: int
    rows: int


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """The recipe's parameters as they apply to one group of parameters."""

    alpha: float
    normalize: Literal["equal", "rows"]


class Method(Protocol):
    """What a method must say. `version` changes whenever the same inputs would give another model."""

    @property
    def name(self) -> str:
        """Name in a recipe."""
        ...

    @property
    def version(self) -> str:
        """Version of the arithmetic, for receipts."""
        ...

    @property
    def reads_taps(self) -> bool:
        """Whether a linear weight's precision needs the Gram matrix of its tap."""
        ...

    def needs_float64(self, settings: MethodSettings, *, width: int, rows: int) -> bool:
        """Tell whether float32 is too coarse to solve linear weights of this width on `rows` rows of all members."""
        ...

    def precision(self, gram: Gram | None, weight: float, settings: MethodSettings) -> Precision:
        """Return one contribution's precision: of linear weights with the Gram matrix of their tap, else with None."""
        ...
