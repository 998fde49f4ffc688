"""The accumulator and its solution: four sums around a reference, added up in one pass, solved once.

Around a reference W_ref, with Dᵢ = Wᵢ − W_ref, the four sums are S = ΣPᵢ, R = ΣDᵢPᵢ, ΣcᵢDᵢ and Σcᵢ. The merge is
W = W_ref + R S⁻¹: the same as (ΣWᵢPᵢ)(ΣPᵢ)⁻¹, and with less rounding, since only differences pass through the solver.
Where S is singular it goes toward W_ref + D̄, D̄ = ΣcᵢDᵢ/Σcᵢ, the weighted mean.
"""

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from gramfuse_shared.fusion.least_squares import Diagnosis
from gramfuse_shared.fusion.objective import Objective
from gramfuse_shared.fusion.precision import Precision, PrecisionSum
from gramfuse_shared.fusion.workspace import Workspace

P = TypeVar("P", bound=Precision)


@dataclass(frozen=True, slots=True)
class Sums:
    """What contributions add up to; also what a secure aggregation delivers in their place.

    Attributes:
        precision: S = ΣPᵢ and R = ΣDᵢPᵢ.
        weighted: ΣcᵢDᵢ, of the shape of the stacked differences; None where all of them are zero.
        weight: Σcᵢ, positive.
    """

    precision: PrecisionSum[Precision]
    weighted: torch.Tensor | None
    weight: float


@dataclass(frozen=True, slots=True)
class Solution:
    """`delta` = W − W_ref of the merge, of the shape of the stacked differences (None: zero), and how it was found."""

    delta: torch.Tensor | None
    diagnosis: Diagnosis


class Accumulator(Generic[P]):
    """Adds contributions up one at a time; memory does not grow with their number.

    The order of `add` decides the rounding: callers add in ascending member key.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        workspace: Workspace | None = None,
        objective: Objective | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            shape: of the differences: [Σout, in] for stacked linears, any other for other parameters.
            dtype: in which the sums are kept, float32 or float64.
            workspace: where they lie; used by one accumulator at a time.
            objective: to be followed, of precisions that are matrices.
        """
        self._shape = shape
        self._dtype = dtype
        self._workspace = workspace or Workspace()
        self._sum: PrecisionSum[Precision] | None = None
        self._weighted: torch.Tensor | None = None
        self._weight = 0.0
        self._objective = objective

    def add(self, difference: torch.Tensor | None, precision: P, weight: float) -> None:
        """Add one contribution.

        Args:
            difference: Dᵢ = Wᵢ − W_ref in the accumulator's shape and dtype; None where it is zero, as the reference's.
            precision: Pᵢ, of the kind and size of all others.
            weight: cᵢ > 0.

        Raises:
            ValueError: the weight is not positive; members of weight 0 are left out by the plan.
        """
        if not weight > 0:
            msg = f"a weight of {weight} adds nothing; leave the contribution out"
            raise ValueError(msg)
        if self._sum is None:
            self._sum = precision.begin(self._shape, self._dtype, self._workspace)
        grams = self._sum.grams
        if self._objective is None or grams is None:
            self._sum.add(precision, difference)
        else:
            before = self._objective.products_of(grams)
            self._sum.add(precision, difference)
            self._objective.add(precision, difference, before, grams)
        self._weight += weight
        if difference is None:
            return
        if self._weighted is None:
            self._weighted = self._workspace.take("weighted", self._shape, self._dtype)
            torch.mul(difference, weight, out=self._weighted)
        else:
            self._weighted.add_(difference, alpha=weight)

    def solve(self) -> Solution:
        """Solve the sums; they are used up.

        Raises:
            ValueError: nothing was added.
        """
        if self._sum is None:
            msg = "nothing was added"
            raise ValueError(msg)
        sums, self._sum = Sums(self._sum, self._weighted, self._weight), None
        return solve_sums(sums, self._objective)


def solve_sums(sums: Sums, objective: Objective | None = None) -> Solution:
    """Return R S⁻¹, design §1 in delta form; the sums' tensors are overwritten. What was followed is in the diagnosis.

    Raises:
        ValueError: the sum of the weights is not positive.
    """
    if not sums.weight > 0:
        msg = f"the weights add up to {sums.weight}; they must be positive"
        raise ValueError(msg)
    if sums.weighted is None:
        return Solution(None, Diagnosis(gained=None if objective is None else 0.0))
    mean, grams = sums.weighted.div_(sums.weight), sums.precision.grams
    if objective is None or grams is None:
        return Solution(*sums.precision.solve(mean))
    of_mean = mean.index_select(0, objective.rows)
    delta, diagnosis = sums.precision.solve(mean)
    is_exact = diagnosis.fallback == "none" and sums.precision is grams  # other sums are not solved to the end
    gained = objective.gained(delta.index_select(0, objective.rows), of_mean, grams, is_exact=is_exact)
    return Solution(delta, replace(diagnosis, gained=gained))
