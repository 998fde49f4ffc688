"""The correction of linear layers toward what their owners' own layers give, by ridge regression of the differences."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gramfuse_shared.fusion.least_squares import Diagnosis, solve
from gramfuse_shared.fusion.products import ProductTerm, sums_of
from gramfuse_shared.fusion.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Correction:
    """What is added to layers that read the same: [m, d] to the weights, [m] to the biases, F64, and how it was found.

    Rows are the outputs of all the layers, one behind the other.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    diagnosis: Diagnosis


def solve_correction(terms: Iterable[ProductTerm], *, ridge: float, with_bias: bool = True) -> Correction:
    """Solve Δ (Σ aᵢGᵢ + λ·diag(Σ aᵢGᵢ)) = (Σ aᵢRᵢ)ᵀ in F64; Δ = [ΔW Δb] is what W and b grow by.

    With Gᵢ = Σ x̃x̃ᵀ and Rᵢ = Σ x̃eᵀ, x̃ = (x, 1) what the merged layer reads and e = y − (Wx + b) what its output lacks to
    the owner's own y, W + ΔW and b + Δb are the least-squares fit of all owners' outputs, y ≈ (W + ΔW)x + b + Δb, over
    all rows, each counted aᵢ times, with a ridge toward the merged layer. The ridge multiplies every diagonal entry, as
    Marquardt scales his (SIAM J. 11, 1963): features differ in size by orders of magnitude, and one multiple of the
    identity would be nothing to the largest and all to the rest. It has no unit. The constant's entry is no exception:
    Δb is pulled toward zero, that is b toward the merged bias, not toward an arbitrary origin.

    Args:
        terms: of every contribution, taken one after the other; aᵢ = cᵢ/nᵢ, n its rows, lets each count the same,
            aᵢ = cᵢ each row.
        ridge: λ ≥ 0. Where it leaves the sum singular, the guards of `least_squares` pull Δ toward zero.
        with_bias: False for layers without one: the constant is left out, and Δb is zero.

    Returns:
        The correction. Of a feature that no row has it is zero.

    Raises:
        ArchitectureMismatchError: no terms, or of different widths or outputs.
        ValueError: λ is negative or not finite.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        msg = f"ridge must be finite and at least 0, not {ridge}"
        raise ValueError(msg)
    total, products = sums_of(terms)
    outputs, features = products.shape[0], products.shape[1] - 1
    if not with_bias:
        total, products = total[:features, :features].contiguous(), products[:, :features].contiguous()
    total.diagonal().mul_(1 + ridge)
    solution, diagnosis = solve(total, products, torch.zeros_like(products), Workspace(products.device))
    bias = solution[:, features] if with_bias else solution.new_zeros(outputs)
    return Correction(solution[:, :features].contiguous(), bias.contiguous(), diagnosis)
