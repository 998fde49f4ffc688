"""Sums of products with a constant, of several contributions, and the linear layer that they fit: heads and layers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.least_squares import Diagnosis, solve
from gramfuse_shared.fusion.workspace import Workspace


@dataclass(frozen=True, slots=True)
class ProductTerm:
    """One contribution's statistics: G = Σ z̃z̃ᵀ packed, B = Σ z̃tᵀ [d+1, m] with z̃ = (z, 1), and their weight a."""

    gram: torch.Tensor
    product: torch.Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A linear layer, or what is added to one: weight [m, d] and bias [m], both F64, and how they were found."""

    weight: torch.Tensor
    bias: torch.Tensor
    diagnosis: Diagnosis


def fit_linear(
    terms: Iterable[ProductTerm],
    *,
    ridge: float,
    regularize: Callable[[torch.Tensor, int], object],
    with_bias: bool,
) -> LinearFit:
    """Solve (Σ aᵢGᵢ + ridge) H = Σ aᵢBᵢ in F64; the weight is Hᵀ without its last column, the bias that column.

    Args:
        terms: of every contribution, taken one after the other.
        ridge: λ ≥ 0. Where it leaves the sum singular, the guards of `least_squares` pull the solution toward zero.
        regularize: adds the ridge to the diagonal [d+1] of the sum, [d] without a bias, in place; is given d, too.
        with_bias: False for a layer without one: the constant is left out, and the bias is zero.

    Returns:
        The layer. A feature that no row has keeps the weight zero.

    Raises:
        ArchitectureMismatchError: no terms, or of different shapes.
        ValueError: λ is negative or not finite.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        msg = f"ridge must be finite and at least 0, not {ridge}"
        raise ValueError(msg)
    total, products = sums_of(terms)
    outputs, features = products.shape[0], products.shape[1] - 1
    if not with_bias:
        total, products = total[:features, :features].contiguous(), products[:, :features].contiguous()
    regularize(total.diagonal(), features)
    solution, diagnosis = solve(total, products, torch.zeros_like(products), Workspace(products.device))
    bias = solution[:, features] if with_bias else solution.new_zeros(outputs)
    return LinearFit(solution[:, :features].contiguous(), bias.contiguous(), diagnosis)


def sums_of(terms: Iterable[ProductTerm]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Σ aᵢGᵢ [d+1, d+1] and Σ aᵢBᵢᵀ [m, d+1], both F64, on the device of the terms, taken one after the other.

    Raises:
        ArchitectureMismatchError: no terms, or of different shapes.
    """
    total, products = torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64)
    for number, term in enumerate(terms):
        width, columns = term.product.shape
        if number == 0:
            total, products = (
                torch.zeros(*shape, dtype=torch.float64, device=term.gram.device)
                for shape in ((width, width), (columns, width))
            )
        if products.shape != (columns, width):
            msg = (
                "statistics that are added must have one width and the same outputs; the products are "
                f"{[products.shape[1], products.shape[0]]}, {[width, columns]}"
            )
            raise ArchitectureMismatchError(msg)
        total.add_(packing.unpack(term.gram.double(), width), alpha=term.scale)
        products.add_(term.product.double().T, alpha=term.scale)
    if not products.numel():
        msg = "statistics that are added must have one width and the same outputs; the products are none"
        raise ArchitectureMismatchError(msg)
    return total, products
