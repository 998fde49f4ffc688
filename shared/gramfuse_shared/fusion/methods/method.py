"""The interfaces of merge methods: those of the precision form, and those that combine differences from the base."""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch

from gramfuse_shared.fusion.precision import Precision
from gramfuse_shared.fusion.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Gram:
    """One contribution's statistics of a tap: G = XᵀX packed, float32, over `rows` rows of `width` features."""

    packed: torch.Tensor
    width: int
    rows: int


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """The recipe's parameters as they apply to one group of parameters of a precision method."""

    alpha: float
    normalize: Literal["equal", "rows"]


@dataclass(frozen=True, slots=True)
class DeltaSettings:
    """The recipe's parameters as they apply to one parameter of a delta method.

    Attributes:
        scale: λ, by which what is added to the base is multiplied.
        density: the share of a difference's elements that is kept, in (0, 1].
        seed: what every contribution's chance begins with.
    """

    scale: float
    density: float
    seed: int


@runtime_checkable
class PrecisionMethod(Protocol):
    """What a method of the precision form must say: W = (Σ Wᵢ Pᵢ)(Σ Pᵢ)⁻¹.

    `version` changes whenever the same inputs would give another model.
    """

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


@dataclass(frozen=True, slots=True)
class Delta:
    """One contribution's difference Dᵢ = Wᵢ − W_base of a parameter, flat, in the dtype of the computation.

    Attributes:
        values: Dᵢ; may be overwritten.
        weight: cᵢ > 0.
        seed: what chance is drawn from; of this contribution, parameter and recipe alone.
    """

    values: torch.Tensor
    weight: float
    seed: int


class DeltaSum(Protocol):
    """What the differences of one parameter add up to."""

    def add(self, delta: Delta, turn: int) -> None:
        """Add a contribution's difference. In each turn every contribution is added once, in the same order."""
        ...

    def result(self) -> torch.Tensor:
        """Return what is added to the base, of the shape of the differences."""
        ...


@runtime_checkable
class DeltaMethod(Protocol):
    """What a method must say that is no least squares: W = W_base + f(D₁, …, Dₙ), parameter by parameter.

    `version` changes whenever the same inputs would give another model.
    """

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
        """Never: False."""
        ...

    @property
    def turns(self) -> int:
        """How often it looks at every difference."""
        ...

    def begin(self, count: int, dtype: torch.dtype, settings: DeltaSettings, workspace: Workspace) -> DeltaSum:
        """Return the sum of nothing, for differences of `count` elements."""
        ...


Method: TypeAlias = PrecisionMethod | DeltaMethod
