"""Solve against a sum of Gram matrices that may be singular: Jacobi scaling, Cholesky, ridge toward zero."""

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch

from gramfuse_shared.fusion import packing

BELIEVED_FROM: Final = 1e-5
"""Smallest believable squared pivot, and smallest believable eigenvalue, of a matrix of unit diagonal. A Cholesky that
merely succeeds on a rank-deficient matrix answers with weights a hundred times too large: what it divides by is the
rounding of the statistics, about 1e-7. A condition below 1e4 has eigenvalues above 1e-4, so it is never concerned."""

RIDGE: Final = 1e-5
"""Added to the unit diagonal where the pivots are not believed; pulls the correction toward zero."""

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
        smallest_eigenvalue: of the same, estimated from above.
        dead_features: features that no row ever used; they keep the average.
    """

    fallback: Fallback = "none"
    reason: str | None = None
    smallest_pivot: float | None = None
    smallest_eigenvalue: float | None = None
    dead_features: int = 0


def solve_packed(total: torch.Tensor, width: int, residual: torch.Tensor) -> tuple[torch.Tensor, Diagnosis]:
    """Solve Y S = residual for Y, where S is singular toward Y = 0.

    With s = diag(S)^-½ the scaled matrix s S s has a unit diagonal, so one floor and one ridge fit every layer:
    Y = [(residual s)(s S s)⁻¹] s. Design §9; the scaling is Jacobi's.

    Args:
        total: S packed, [packed_length(width)], float32 or float64.
        width: d.
        residual: [m, d] in the dtype of `total`. Overwritten.

    Returns:
        Y [m, d], finite whatever S is, and how it was found.
    """
    energy = packing.diagonal(total, width)
    alive = energy > DEAD_BELOW
    # dead features: s = 0 and a diagonal of 1, so their columns of Y are 0 and they keep the average
    scale = torch.where(alive, energy.clamp(min=DEAD_BELOW).rsqrt(), 0.0)
    dead = int((~alive).sum())
    scaled = packing.unpack_lower(total, width)
    scaled.mul_(scale[:, None]).mul_(scale)
    scaled.diagonal().fill_(1.0)
    lower, pivot = _factorize(scaled)
    eigenvalue = None if pivot is None else _estimate_smallest_eigenvalue(lower)
    # comparisons that NaN fails, so that it is not believed either
    believed = pivot is not None and pivot >= BELIEVED_FROM and eigenvalue is not None and eigenvalue >= BELIEVED_FROM
    fallback: Fallback = "none" if believed else "ridge"
    reason = None if believed else "too few rows for the width: the sum is not of full rank"
    if not believed:
        scaled.diagonal().add_(RIDGE)
        lower, ridged = _factorize(scaled)
        if ridged is None:
            reason = "the sum of the Gram matrices is not positive semi-definite"
            return torch.zeros_like(residual), Diagnosis("average", reason, pivot, eigenvalue, dead)
    solution = torch.cholesky_solve(residual.mul_(scale).T, lower).T * scale
    if not bool(torch.isfinite(solution).all()):
        reason = "the solution is not finite"
        return torch.zeros_like(residual), Diagnosis("average", reason, pivot, eigenvalue, dead)
    return solution, Diagnosis(fallback, reason, pivot, eigenvalue, dead)


def _factorize(matrix: torch.Tensor) -> tuple[torch.Tensor, float | None]:
    """Return the lower Cholesky factor and its smallest squared pivot, or None where there is no factor."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    pivot = float(lower.diagonal().square().min())
    # LAPACK does not promise to notice NaN, so the pivots must say it
    return lower, pivot if int(info) == 0 and pivot > 0 else None


def _estimate_smallest_eigenvalue(lower: torch.Tensor) -> float:
    """Estimate the smallest eigenvalue of L Lᵀ from above: 1/‖(L Lᵀ)⁻¹v‖ for unit vectors v, by inverse iteration.

    Pivots alone do not show it: noise of 1e-7 behind a pivot of 1e-4 appears as a pivot of 1e-3.
    """
    width = lower.shape[0]
    vectors = torch.ones(width, 3, dtype=lower.dtype, device=lower.device)
    vectors[1::2, 1] = -1.0
    vectors[:, 2] = 0.0
    vectors[int(lower.diagonal().argmin()), 2] = 1.0
    largest = 0.0
    for _ in range(3):
        vectors = torch.cholesky_solve(vectors / vectors.norm(dim=0), lower)
        norm = float(vectors.norm(dim=0).max())
        if not math.isfinite(norm):
            return 0.0
        largest = max(largest, norm)
    return 1 / largest
