"""The accumulator and its solution: four sums around a reference, added up in one pass, solved once.

Around a reference W_ref, with Dᵢ = Wᵢ − W_ref, the four sums are S = ΣPᵢ, R = ΣDᵢPᵢ, ΣcᵢDᵢ and Σcᵢ. The merge is
W = W_ref + D̄ + (R − D̄S)S⁻¹ with D̄ = ΣcᵢDᵢ/Σcᵢ: the same as (ΣWᵢPᵢ)(ΣPᵢ)⁻¹ where that exists, the weighted mean where
it does not, and with less rounding, since only differences pass through the solver.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from gramfuse_shared.fusion.cholesky import Diagnosis
from gramfuse_shared.fusion.precision import Precision

P = TypeVar("P", bound=Precision)


@dataclass(frozen=True, slots=True)
class Sums(Generic[P]):
    """What contributions add up to; also what a secure aggregation delivers in their place.

    Attributes:
        precision: S = ΣPᵢ.
        products: R = ΣDᵢPᵢ, of the shape of the stacked differences; None where the precision does not correct.
        weighted: ΣcᵢDᵢ, of the same shape.
        weight: Σcᵢ, positive.
    """

    precision: P
    products: torch.Tensor | None
    weighted: torch.Tensor
    weight: float


@dataclass(frozen=True, slots=True)
class Solution:
    """`delta` = W − W_ref of the merge, of the shape of the stacked differences, and how it was found."""

    delta: torch.Tensor
    diagnosis: Diagnosis


class Accumulator(Generic[P]):
    """Adds contributions up one at a time; memory does not grow with their number.

    The order of `add` decides the rounding: callers add in ascending member key.
    """

    def __init__(self, *, dtype: torch.dtype) -> None:
        """Begin with nothing; sums are kept in `dtype` (float32 or float64)."""
        self._dtype = dtype
        self._sums: Sums[P] | None = None

    def add(self, difference: torch.Tensor, precision: P, weight: float) -> None:
        """Add one contribution.

        Args:
            difference: Dᵢ = Wᵢ − W_ref; [Σout, in] for stacked linears, any shape for other parameters. Overwritten.
            precision: Pᵢ, of the kind and size of all others.
            weight: cᵢ > 0.

        Raises:
            ValueError: the weight is not positive; members of weight 0 are left out by the plan.
        """
        if not weight > 0:
            msg = f"a weight of {weight} adds nothing; leave the contribution out"
            raise ValueError(msg)
        difference = difference.to(self._dtype)
        if self._sums is None:
            total = precision.zero(self._dtype)
            total.add_(precision)
            products = precision.times(difference) if precision.corrects else None
            self._sums = Sums(total, products, difference * weight, weight)
            return
        sums = self._sums
        sums.precision.add_(precision)
        if sums.products is not None:
            sums.products.add_(precision.times(difference))
        sums.weighted.add_(difference, alpha=weight)
        self._sums = Sums(sums.precision, sums.products, sums.weighted, sums.weight + weight)

    @property
    def sums(self) -> Sums[P]:
        """The four sums so far.

        Raises:
            ValueError: nothing was added.
        """
        if self._sums is None:
            msg = "nothing was added"
            raise ValueError(msg)
        return self._sums

    def solve(self) -> Solution:
        """Solve the sums; they are used up."""
        sums, self._sums = self.sums, None
        return solve_sums(sums)


def solve_sums(sums: Sums[P]) -> Solution:
    """Return D̄ + (R − D̄S)S⁻¹. Design §1, delta form; the sums' tensors are overwritten.

    Raises:
        ValueError: the sum of the weights is not positive.
    """
    if not sums.weight > 0:
        msg = f"the weights add up to {sums.weight}; they must be positive"
        raise ValueError(msg)
    mean = sums.weighted.div_(sums.weight)
    if sums.products is None:
        return Solution(mean, Diagnosis())
    correction, diagnosis = sums.precision.correct(sums.products, mean)
    return Solution(mean.add_(correction), diagnosis)
