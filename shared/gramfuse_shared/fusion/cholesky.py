"""Solve against a sum of Gram matrices that may be singular: Jacobi scaling, Cholesky, ridge toward zero."""

from dataclasses import dataclass
from typing import Final, Literal

import torch

from gramfuse_shared.fusion import packing

PIVOT_FLOOR: Final = 1e-5
"""Smallest believable squared pivot of a matrix with unit diagonal. A Cholesky that merely succeeds on a
rank-deficient matrix has pivots of rounding noise and answers with weights a hundred times too large."""

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
        smallest_pivot: smallest squared pivot of the scaled sum before any ridge; None where nothing was factorized.
        dead_features: features that no row ever used; they keep the average.
    """

    fallback: Fallback = "none"
    reason: str | None = None
    smallest_pivot: float | None = None
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
    # written so that a NaN pivot is not believed either
    believed = pivot is not None and pivot >= PIVOT_FLOOR
    if not believed:
        scaled.diagonal().add_(RIDGE)
        lower, ridged = _factorize(scaled)
        if ridged is None:
            reason = "the sum of the Gram matrices is not positive semi-definite"
            return torch.zeros_like(residual), Diagnosis("average", reason, pivot, dead)
    right = residual.mul_(scale).T
    solution = torch.cholesky_solve(right, lower).T * scale
    if not bool(torch.isfinite(solution).all()):
        return torch.zeros_like(residual), Diagnosis("average", "the solution is not finite", pivot, dead)
    if believed:
        return solution, Diagnosis("none", None, pivot, dead)
    return solution, Diagnosis("ridge", "too few rows for the width: the sum is not of full rank", pivot, dead)


def _factorize(matrix: torch.Tensor) -> tuple[torch.Tensor, float | None]:
    """Return the lower Cholesky factor and its smallest squared pivot, or None where there is no factor."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    pivot = float(lower.diagonal().square().min())
    # LAPACK does not promise to notice NaN, so the pivots must say it
    return lower, pivot if int(info) == 0 and pivot > 0 else None
