"""Precisions: what weighs one contribution's value of a parameter against the others'.

A merge is W = (Σ Wᵢ Pᵢ)(Σ Pᵢ)⁻¹. A precision knows how to add itself to a sum, to be multiplied by a difference, and,
as the sum of many, to be solved against. Nothing else of a method enters the accumulator.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.cholesky import DEAD_BELOW, Diagnosis, solve_packed


class Precision(ABC):
    """One contribution's P, or the sum of several."""

    corrects: ClassVar[bool] = True
    """Whether the merge differs from the weighted mean; where not, no products D P are kept."""

    @abstractmethod
    def zero(self, dtype: torch.dtype) -> Self:
        """Return an empty sum of the same kind and size, on the same device, that computes in `dtype`."""

    @abstractmethod
    def add_(self, other: Self) -> None:
        """Add another precision to this sum, in place. Only a sum that `zero` made, or ready sums, may be added to."""

    @abstractmethod
    def times(self, difference: torch.Tensor) -> torch.Tensor:
        """Return D P in the dtype of D."""

    @abstractmethod
    def correct(self, products: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        """Return (R − D̄S)S⁻¹ for this sum S, R = ΣDᵢPᵢ and D̄ = ΣcᵢDᵢ/Σcᵢ; zero where S is. Overwrites `products`."""


@dataclass(slots=True)
class ScalarPrecision(Precision):
    """P = c, the same for the whole parameter: the weighted mean."""

    corrects: ClassVar[bool] = False

    value: float

    def zero(self, dtype: torch.dtype) -> Self:  # noqa: ARG002 - a Python float is float64 in any case
        """Return the scalar 0."""
        return type(self)(0.0)

    def add_(self, other: Self) -> None:
        """Add the other scalar."""
        self.value += other.value

    def times(self, difference: torch.Tensor) -> torch.Tensor:
        """Return c D."""
        return difference * self.value

    def correct(self, products: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:  # noqa: ARG002
        """Return zero: with P = c the weighted mean is the solution."""
        return torch.zeros_like(mean), Diagnosis()


@dataclass(slots=True)
class DiagonalPrecision(Precision):
    """P is one non-negative number per element, of the parameter's shape (a diagonal Fisher, for example)."""

    values: torch.Tensor

    def zero(self, dtype: torch.dtype) -> Self:
        """Return zeros of the same shape."""
        return type(self)(torch.zeros_like(self.values, dtype=dtype))

    def add_(self, other: Self) -> None:
        """Add element by element."""
        self.values.add_(other.values)

    def times(self, difference: torch.Tensor) -> torch.Tensor:
        """Return D ∘ P."""
        return difference * self.values.to(difference.dtype)

    def correct(self, products: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        """Return (R − D̄ ∘ S) / S, and zero where nobody has any precision."""
        alive = self.values > DEAD_BELOW
        quotient = products.sub_(mean * self.values).div_(self.values.clamp(min=DEAD_BELOW))
        correction = torch.where(alive, quotient, 0.0)
        return correction, Diagnosis(dead_features=int((~alive).sum()))


@dataclass(slots=True)
class GramPrecision(Precision):
    """P = scale·(αG + (1−α) diag G) for a linear weight [out, in]; never written out. RegMean, eq. 2 and §4.2.

    `gram` is G packed, [packed_length(width)]: of one contribution the raw sum XᵀX in float32 as it was sent, of a sum
    the sum itself, with `scale` and `alpha` 1.
    """

    gram: torch.Tensor
    width: int
    scale: float = 1.0
    alpha: float = 1.0

    def zero(self, dtype: torch.dtype) -> Self:
        """Return the packed zero matrix."""
        return type(self)(packing.packed_zeros(self.width, dtype=dtype, device=self.gram.device), self.width)

    def add_(self, other: Self) -> None:
        """Add the other's P: its off-diagonal times scale·α, its diagonal times scale.

        Raises:
            ValueError: this precision is one contribution's, not a sum.
        """
        if self.scale != 1.0 or self.alpha != 1.0:
            msg = "only a sum can be added to; begin with zero()"
            raise ValueError(msg)
        sums, terms = packing.block_rows(self.gram, self.width), packing.block_rows(other.gram, other.width)
        for (_, _, block), (_, _, term) in zip(sums, terms, strict=True):
            # converted block by block, before scaling: in float64 the scale then rounds nothing
            block.add_(term.to(block.dtype), alpha=other.scale * other.alpha)
        if other.alpha != 1.0:
            packing.add_to_diagonal(self.gram, other._diagonal(self.gram.dtype) * (other.scale * (1 - other.alpha)))

    def times(self, difference: torch.Tensor) -> torch.Tensor:
        """Return D P = scale·(α D G + (1−α) D ∘ diag G), [m, in]."""
        product = packing.multiply(difference, self.gram).mul_(self.scale * self.alpha)
        if self.alpha != 1.0:
            product.addcmul_(difference, self._diagonal(difference.dtype), value=self.scale * (1 - self.alpha))
        return product

    def correct(self, products: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        """Return (R − D̄S)S⁻¹, by Cholesky with the guards of `cholesky`."""
        return solve_packed(self.gram, self.width, products.sub_(packing.multiply(mean, self.gram)))

    def _diagonal(self, dtype: torch.dtype) -> torch.Tensor:
        return packing.diagonal(self.gram, self.width).to(dtype)
