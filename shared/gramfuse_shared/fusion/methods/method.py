"""What merge methods are: of the precision form, by layers or elements, a way to combine differences, or a refit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self, TypeAlias, runtime_checkable

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
class Fisher:
    """One contribution's Fisher information of some elements: the raw sum of squared gradients over `examples`.

    `norm` is that of all parameters that are merged by it, or of the one that these elements are of, as is normalized.
    """

    values: torch.Tensor
    examples: int
    norm: float


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """The recipe's parameters as they apply to one group of parameters of a precision method."""

    alpha: float
    normalize: Literal["equal", "rows", "norm", "parameter_norm"]
    ridge: float = 0.0


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


class AnyMethod(Protocol):
    """What every method says. `version` changes whenever the same inputs would give another model."""

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
        """Whether a linear weight's value needs the Gram matrix of its tap."""
        ...


@runtime_checkable
class PrecisionMethod(AnyMethod, Protocol):
    """What a method of the precision form must say: W = (Σ Wᵢ Pᵢ)(Σ Pᵢ)⁻¹."""

    def needs_float64(self, settings: MethodSettings, *, width: int, rows: int) -> bool:
        """Tell whether float32 is too coarse to solve linear weights of this width on `rows` rows of all members."""
        ...

    def precision(self, gram: Gram | None, weight: float, settings: MethodSettings) -> Precision:
        """Return one contribution's precision: of linear weights with the Gram matrix of their tap, else with None."""
        ...


@runtime_checkable
class DifferenceMethod(PrecisionMethod, Protocol):
    """A method of the precision form whose precisions are the differences from the base themselves."""

    def gram(self, difference: torch.Tensor) -> Gram:
        """Return what takes a measured matrix's place: a function of D = W − W_base of one linear weight [out, in]."""
        ...


@runtime_checkable
class ElementMethod(AnyMethod, Protocol):
    """What a method of the precision form must say that weighs every element by itself."""

    def elementwise_precision(self, fisher: Fisher, weight: float, settings: MethodSettings) -> Precision:
        """Return one contribution's precision of the elements that its Fisher information is of."""
        ...


class DeltaSum(Protocol):
    """What the differences of one parameter, flat, add up to.

    In each of its `turns` every contribution's is added once, in the same order.
    """

    turns: ClassVar[int]

    @classmethod
    def begin(cls, count: int, dtype: torch.dtype, workspace: Workspace) -> Self:
        """Return the sum of nothing, for differences of `count` elements."""
        ...

    def add(self, values: torch.Tensor, weight: float, turn: int) -> None:
        """Add a contribution's difference with its cᵢ > 0."""
        ...

    def result(self) -> torch.Tensor:
        """Return the sum; this is used up."""
        ...


@dataclass(frozen=True, slots=True)
class DeltaMethod:
    """A method that is no least squares: W = W_base + λ·sum(s(D₁), …, s(Dₙ)), parameter by parameter.

    Attributes:
        name: in a recipe.
        version: of the arithmetic, for receipts; see `AnyMethod`.
        sparsify: s: makes a difference sparse in place, given its density and a seed, and returns it.
        combine: the sum.
    """

    reads_taps: ClassVar[bool] = False

    name: str
    version: str
    sparsify: Callable[[torch.Tensor, float, int], torch.Tensor]
    combine: type[DeltaSum]


@dataclass(frozen=True, slots=True)
class RefitMethod:
    """A method that merges no weights: by the answers to a request it changes the head or layers of a merged model."""

    reads_taps: ClassVar[bool] = False

    name: str
    version: str


Method: TypeAlias = PrecisionMethod | ElementMethod | DeltaMethod | RefitMethod
