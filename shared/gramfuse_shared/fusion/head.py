"""The head that fits a merged trunk: ridge regression of the owners' logits on the features that the trunk gives."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gramfuse_shared.fusion.least_squares import Diagnosis, solve
from gramfuse_shared.fusion.products import ProductTerm, sums_of
from gramfuse_shared.fusion.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer: weight [labels, d] and bias [labels], both F64, and how they were found."""

    weight: torch.Tensor
    bias: torch.Tensor
    diagnosis: Diagnosis


def solve_head(terms: Iterable[ProductTerm], *, ridge: float, with_bias: bool = True) -> Head:
    """Solve (Σ aᵢGᵢ + λ·(tr/d)·I′) H = Σ aᵢBᵢ in F64; the weight is Hᵀ without its last column, the bias that column.

    With λ = 0 it is the least-squares fit of all owners' logits, t ≈ Wz + b, over all rows, each counted aᵢ times. tr
    is the trace over the d features, so that λ has no unit. I′ is the identity without the constant's entry: a bias is
    where logits lie, and pulling it toward zero would make predictions depend on what was subtracted from all of them.

    Args:
        terms: of every contribution, taken one after the other; aᵢ = cᵢ/nᵢ, n its rows, lets each count the same,
            aᵢ = cᵢ each row.
        ridge: λ ≥ 0. Where it leaves the sum singular, the guards of `least_squares` pull the solution toward zero.
        with_bias: False for a layer without one: the constant is left out, and the bias is zero.

    Returns:
        The head. A feature that no row has keeps the weight zero.

    Raises:
        ArchitectureMismatchError: no terms, or of different widths or labels.
        ValueError: λ is negative or not finite.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        msg = f"ridge must be finite and at least 0, not {ridge}"
        raise ValueError(msg)
    total, products = sums_of(terms)
    labels, features = products.shape[0], products.shape[1] - 1
    if not with_bias:
        total, products = total[:features, :features].contiguous(), products[:, :features].contiguous()
    energy = total.diagonal()[:features]
    energy += ridge * float(energy.mean())  # a view: the constant's entry stays
    solution, diagnosis = solve(total, products, torch.zeros_like(products), Workspace(products.device))
    bias = solution[:, features] if with_bias else solution.new_zeros(labels)
    return Head(solution[:, :features].contiguous(), bias.contiguous(), diagnosis)
