"""The head that fits a merged trunk: ridge regression of the owners' logits on the features that the trunk gives."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.least_squares import Diagnosis, solve
from gramfuse_shared.fusion.workspace import Workspace


@dataclass(frozen=True, slots=True)
class HeadTerm:
    """One contribution's statistics: G = Σ z̃z̃ᵀ packed, B = Σ z̃tᵀ [d+1, labels] with z̃ = (z, 1), and their weight a."""

    gram: torch.Tensor
    product: torch.Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer: weight [labels, d] and bias [labels], both F64, and how they were found."""

    weight: torch.Tensor
    bias: torch.Tensor
    diagnosis: Diagnosis


def solve_head(terms: Iterable[HeadTerm], *, ridge: float, with_bias: bool = True) -> Head:
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
    total, products = _sums_of(terms)
    labels, features = products.shape[0], products.shape[1] - 1
    if not with_bias:
        total, products = total[:features, :features].contiguous(), products[:, :features].contiguous()
    energy = total.diagonal()[:features]
    energy += ridge * float(energy.mean())  # a view: the constant's entry stays
    solution, diagnosis = solve(total, products, torch.zeros_like(products), Workspace())
    bias = solution[:, features] if with_bias else solution.new_zeros(labels)
    return Head(solution[:, :features].contiguous(), bias.contiguous(), diagnosis)


def _sums_of(terms: Iterable[HeadTerm]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Σ aᵢGᵢ [d+1, d+1] and Σ aᵢBᵢᵀ [labels, d+1], both F64."""
    total, products = torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64)
    for number, term in enumerate(terms):
        width, labels = term.product.shape
        if number == 0:
            total, products = total.new_zeros(width, width), products.new_zeros(labels, width)
        if products.shape != (labels, width):
            msg = (
                "head statistics must have one width and the same labels; the products are "
                f"{[products.shape[1], products.shape[0]]}, {[width, labels]}"
            )
            raise ArchitectureMismatchError(msg)
        total += term.scale * packing.unpack(term.gram.cpu().double(), width)
        products += term.scale * term.product.cpu().double().T
    if not products.numel():
        msg = "head statistics must have one width and the same labels; the products are none"
        raise ArchitectureMismatchError(msg)
    return total, products
