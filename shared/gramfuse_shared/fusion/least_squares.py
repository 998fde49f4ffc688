"""Solve Y S = R where S may be singular: Jacobi scaling, Cholesky, and a ridge toward the mean where it must be."""

from dataclasses import dataclass
from typing import Final, Literal

import torch

from gramfuse_shared.fusion import symmetric
from gramfuse_shared.fusion.cholesky import Factor
from gramfuse_shared.fusion.workspace import Workspace, is_finite

BELIEVED_FROM: Final = 1e-5
"""Smallest believable squared pivot, and smallest believable eigenvalue, of a matrix of unit diagonal. A Cholesky that
merely succeeds on a rank-deficient matrix answers with weights a hundred times too large: what it divides by is the
rounding of the statistics, about 1e-7. A condition below 1e4 has eigenvalues above 1e-4, so it is never concerned."""

RIDGE: Final = 1e-5
"""Added to the unit diagonal where the pivots are not believed; pulls the solution toward the mean."""

DEAD_BELOW: Final = 1e-31
"""Diagonal values up to this count as zero: about float32's smallest normal number over its epsilon, below which
products of such a feature have no correct digits."""

Fallback = Literal["none", "ridge", "average"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """How a group was solved.

    Attributes:
        fallback: `none` (least squares), `ridge` (the same with `RIDGE`), `average` (no correction at all).
        reason: why not `none`.
        smallest_pivot: smallest squared pivot of the scaled sum before any ridge; None where there is no factor.
        smallest_eigenvalue: of the same, estimated from above; None in float32, which methods choose only where
            their α keeps it large.
        dead_features: features that no row ever used; they keep the average.
        condition: a lower bound of the condition number of the system that was solved: the sum scaled to a unit
            diagonal, with the ridge if there was one; None where nothing was factorized.
        gained: the share of the objective that the solution gains over the mean, see `Objective`; None if not followed.
    """

    fallback: Fallback = "none"
    reason: str | None = None
    smallest_pivot: float | None = None
    smallest_eigenvalue: float | None = None
    dead_features: int = 0
    condition: float | None = None
    gained: float | None = None


def solve(
    total: torch.Tensor, products: torch.Tensor, mean: torch.Tensor, workspace: Workspace
) -> tuple[torch.Tensor, Diagnosis]:
    """Return R S⁻¹ where S determines it, and the mean D̄ where it does not.

    With s = diag(S)^-½ the scaled matrix s S s has a unit diagonal, so one floor and one ridge fit every layer:
    Y = [(R s)(s S s)⁻¹] s. Where that matrix is singular to working precision, Y = D̄ + [((R − D̄S) s)(s S s + λI)⁻¹] s,
    which is least squares with a ridge toward the mean. Design §9; the scaling is Jacobi's.

    Args:
        total: S [d, d], of which the lower triangle is read, float32 or float64. Its upper one is overwritten.
        products: R [m, d] in the dtype of `total`. Overwritten.
        mean: D̄ [m, d], the same.
        workspace: memory for the factor, "square", and beside the products, "difference".

    Returns:
        Y [m, d], finite whatever S is as long as the mean is, and how it was found.
    """
    energy = total.diagonal()
    alive = energy > DEAD_BELOW
    # dead features: s = 0 and a diagonal of 1, so they take no part, and they keep the mean
    scale = torch.where(alive, energy.clamp(min=DEAD_BELOW).rsqrt(), 0.0)
    dead = int((~alive).sum())
    factor = Factor.of(_scaled(total, scale, 1.0, workspace))
    pivot = None if factor is None else factor.smallest_pivot
    eigenvalue = None
    if factor is not None and total.dtype == torch.float64:
        eigenvalue = factor.estimate_smallest_eigenvalue()
    # comparisons that NaN fails, so that it is not believed either
    believed = pivot is not None and pivot >= BELIEVED_FROM and (eigenvalue is None or eigenvalue >= BELIEVED_FROM)
    fallback: Fallback = "none" if believed else "ridge"
    reason = None if believed else "too few rows for the width: the sum is not of full rank"
    if not believed:
        symmetric.add_product_(products, mean, total, alpha=-1)  # R − D̄S
        factor = Factor.of(_scaled(total, scale, 1.0 + RIDGE, workspace))
        if factor is None:
            reason = "the sum of the Gram matrices is not positive semi-definite"
            return mean, Diagnosis("average", reason, pivot, eigenvalue, dead)
    if factor is None:  # pragma: no cover - not believed, so it was replaced
        return mean, Diagnosis("average", reason, pivot, eigenvalue, dead)
    smallest = eigenvalue if believed else factor.estimate_smallest_eigenvalue()
    condition = factor.bound_condition(smallest=factor.smallest_pivot if smallest is None else smallest)
    beside = workspace.take("difference", tuple(products.shape), products.dtype)
    solution = factor.solve_(products.mul_(scale), beside).mul_(scale)
    if not believed:
        solution.add_(mean)
    elif dead:
        solution = torch.where(alive, solution, mean)
    if not is_finite(solution):
        return mean, Diagnosis("average", "the solution is not finite", pivot, eigenvalue, dead, condition)
    return solution, Diagnosis(fallback, reason, pivot, eigenvalue, dead, condition)


def _scaled(total: torch.Tensor, scale: torch.Tensor, diagonal: float, workspace: Workspace) -> torch.Tensor:
    """Return the lower triangle of s S s with this diagonal, in memory of its own."""
    width = total.shape[0]
    scaled = workspace.take("square", (width, width), total.dtype)
    for rows in symmetric.panels(width):
        torch.mul(total[rows, : rows.stop], scale[: rows.stop], out=scaled[rows, : rows.stop])
        scaled[rows, : rows.stop].mul_(scale[rows, None])
    scaled.diagonal().fill_(diagonal)
    return scaled
