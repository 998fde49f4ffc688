"""Precisions: what weighs one contribution's value of a parameter against the others'.

A merge is W = (Σ Wᵢ Pᵢ)(Σ Pᵢ)⁻¹. A precision is a value: what a method says of one contribution. Its kind knows the
sums S = ΣPᵢ and R = ΣDᵢPᵢ that contributions add to, and how they are solved. Nothing else of a method enters the
accumulator.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from gramfuse_shared.fusion import packing, symmetric
from gramfuse_shared.fusion.least_squares import DEAD_BELOW, Diagnosis, solve
from gramfuse_shared.fusion.workspace import Workspace

P = TypeVar("P", bound="Precision")


class Precision(ABC):
    """One contribution's P."""

    @abstractmethod
    def begin(self, shape: tuple[int, ...], dtype: torch.dtype, workspace: Workspace) -> "PrecisionSum[Precision]":
        """Return empty sums for parameters of this shape that compute in `dtype`, with memory of the workspace."""

    @property
    def of_gram(self) -> "GramPrecision | None":
        """What it is of a Gram matrix; None if it is none."""
        return None


class PrecisionSum(ABC, Generic[P]):
    """S = ΣPᵢ and R = ΣDᵢPᵢ."""

    @property
    def grams(self) -> "GramSum | None":
        """The sums as matrices; None if they are none."""
        return None

    @abstractmethod
    def add(self, precision: P, difference: torch.Tensor | None) -> None:
        """Add a contribution; `difference` is Dᵢ, of the parameters' shape, None where it is zero. Changes neither."""

    @abstractmethod
    def solve(self, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        """Return R S⁻¹, and of `mean`, ΣcᵢDᵢ/Σcᵢ, what S does not determine. The sums and the mean are used up."""


@dataclass(frozen=True, slots=True)
class ScalarPrecision(Precision):
    """P = c, the same for the whole parameter: the weighted mean."""

    value: float

    def begin(self, shape: tuple[int, ...], dtype: torch.dtype, workspace: Workspace) -> "PrecisionSum[Precision]":  # noqa: ARG002 - a mean needs no sums of its own
        """Return sums that keep nothing."""
        return _ScalarSum()


class _ScalarSum(PrecisionSum[Precision]):
    def add(self, precision: Precision, difference: torch.Tensor | None) -> None:
        """Keep nothing: with P = c the weighted mean is the solution."""

    def solve(self, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        return mean, Diagnosis()


@dataclass(frozen=True, slots=True)
class DiagonalPrecision(Precision):
    """P = scale·values: one non-negative number per element, of the parameter's shape (a diagonal Fisher, say)."""

    values: torch.Tensor
    scale: float = 1.0

    def begin(self, shape: tuple[int, ...], dtype: torch.dtype, workspace: Workspace) -> "PrecisionSum[Precision]":
        """Return zeros."""
        total, products = workspace.zeros("sum", shape, dtype), workspace.zeros("products", shape, dtype)
        return DiagonalSum(total, products)  # type: ignore[return-value] # takes its own kind of precision only


@dataclass(frozen=True, slots=True)
class DiagonalSum(PrecisionSum[DiagonalPrecision]):
    """S and R of one number per element; both may have been added up elsewhere."""

    total: torch.Tensor
    products: torch.Tensor

    def add(self, precision: DiagonalPrecision, difference: torch.Tensor | None) -> None:
        """Add P to S and D P to R, element by element."""
        values = precision.values.to(self.total.dtype)
        self.total.add_(values, alpha=precision.scale)
        if difference is not None:
            self.products.addcmul_(difference, values, value=precision.scale)

    def solve(self, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        """Return R/S, and the mean where S is zero."""
        # where nobody has any precision, the mean stays
        alive = self.total > DEAD_BELOW
        quotient = self.products.div_(self.total.clamp(min=DEAD_BELOW))
        return torch.where(alive, quotient, mean), Diagnosis(dead_features=int((~alive).sum()))


@dataclass(frozen=True, slots=True)
class GramPrecision(Precision):
    """P = scale·(αG + (1−α) diag G + ridge·I) of a linear weight [out, in]; never written out. RegMean, eq. 2, §4.2.

    `gram` is G packed, [packed_length(width)]: the raw sum XᵀX in float32 as it was sent.
    """

    gram: torch.Tensor
    width: int
    scale: float = 1.0
    alpha: float = 1.0
    ridge: float = 0.0

    def begin(self, shape: tuple[int, ...], dtype: torch.dtype, workspace: Workspace) -> "PrecisionSum[Precision]":
        """Return S = 0, [in, in], and R = 0, [out, in]."""
        return GramSum.zero(shape, dtype, workspace)  # type: ignore[return-value] # takes its own kind only

    @property
    def of_gram(self) -> "GramPrecision":
        """Itself."""
        return self


@dataclass(frozen=True, slots=True)
class GramSum(PrecisionSum[GramPrecision]):
    """S [in, in] in its lower triangle and R [out, in]."""

    total: torch.Tensor
    products: torch.Tensor
    workspace: Workspace

    @classmethod
    def zero(cls, shape: tuple[int, ...], dtype: torch.dtype, workspace: Workspace) -> "GramSum":
        """Begin with nothing, for differences of this shape, [out, in]."""
        total = workspace.zeros("sum", (shape[1], shape[1]), dtype)
        return cls(total, workspace.zeros("products", shape, dtype), workspace)

    @classmethod
    def ready(cls, packed: torch.Tensor, width: int, products: torch.Tensor, workspace: Workspace) -> "GramSum":
        """Take sums that were added up elsewhere: S packed, R [out, in]."""
        total = workspace.take("sum", (width, width), products.dtype)
        symmetric.expand(packed, total)
        return cls(total, products, workspace)

    @property
    def grams(self) -> "GramSum":
        """Itself."""
        return self

    def add(self, precision: GramPrecision, difference: torch.Tensor | None) -> None:
        """Add P to S and D P to R.

        P is scale·α times G whose diagonal is divided by α and raised by ridge/α, or where α = 0 a scaled diagonal.
        """
        # converted before scaling: in float64 the scale then rounds nothing
        term = self.workspace.take("square", tuple(self.total.shape), self.total.dtype)
        if precision.alpha == 0.0:
            term.zero_().diagonal().copy_(packing.diagonal(precision.gram, precision.width))
        else:
            symmetric.expand(precision.gram, term)
            term.diagonal().div_(precision.alpha)
        if precision.ridge:
            term.diagonal().add_(precision.ridge / (precision.alpha or 1.0))
        scale = precision.scale * (precision.alpha or 1.0)
        symmetric.add_(self.total, term, alpha=scale)
        if difference is not None:
            symmetric.add_product_(self.products, difference, term, alpha=scale)

    def solve(self, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        """Return R S⁻¹, with the guards of `least_squares`."""
        return solve(self.total, self.products, mean, self.workspace)
