"""Precisions whose least squares is descended a few steps from a start, not solved: the start decides what is left."""

from dataclasses import dataclass
from typing import Final

import torch

from gramfuse_shared.fusion import symmetric
from gramfuse_shared.fusion.least_squares import Diagnosis
from gramfuse_shared.fusion.precision import GramPrecision, GramSum, Precision, PrecisionSum
from gramfuse_shared.fusion.workspace import Workspace

STEPS: Final = 300
LEARNING_RATE: Final = 1e-5
"""Of Adam, as WUDI's published code has them. An element moves by about 0.003 at most, whatever the differences are."""


@dataclass(frozen=True, slots=True)
class DescendedPrecision(Precision):
    """P = scale·G of a linear weight [out, in], G packed, [packed_length(width)]; `scale` is c."""

    gram: torch.Tensor
    width: int
    scale: float = 1.0

    def begin(self, shape: tuple[int, ...], dtype: torch.dtype, workspace: Workspace) -> "PrecisionSum[Precision]":
        """Return S = 0, [in, in], and R = 0, [out, in]."""
        sums = GramSum.zero(shape, dtype, workspace)
        return DescendedSum(sums)  # type: ignore[return-value] # takes its own kind of precision only

    @property
    def of_gram(self) -> GramPrecision:
        """The same, to be added up."""
        return GramPrecision(self.gram, self.width, scale=self.scale)


@dataclass(slots=True)
class DescendedSum(PrecisionSum[DescendedPrecision]):
    """S, R and Σc."""

    sums: GramSum
    weight: float = 0.0

    @property
    def grams(self) -> GramSum:
        """S and R."""
        return self.sums

    def add(self, precision: DescendedPrecision, difference: torch.Tensor | None) -> None:
        """Add P to S, D P to R and c to Σc."""
        self.sums.add(precision.of_gram, difference)
        self.weight += precision.scale

    def solve(self, mean: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
        """Return what is reached from ΣcᵢDᵢ, by Adam, toward the X that minimizes tr(X S Xᵀ − 2 X Rᵀ)."""
        reached = mean.mul_(self.weight)
        adam = torch.optim.Adam([reached], lr=LEARNING_RATE)
        reached.grad = torch.empty_like(reached)
        for _ in range(STEPS):
            torch.mul(self.sums.products, -2.0, out=reached.grad)
            symmetric.add_product_(reached.grad, reached, self.sums.total, alpha=2.0)
            adam.step()
        return reached, Diagnosis()
