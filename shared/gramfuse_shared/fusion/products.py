"""Sums of products with a constant, of several contributions: what heads and layers are refit from."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.fusion import packing


@dataclass(frozen=True, slots=True)
class ProductTerm:
    """One contribution's statistics: G = Σ z̃z̃ᵀ packed, B = Σ z̃tᵀ [d+1, m] with z̃ = (z, 1), and their weight a."""

    gram: torch.Tensor
    product: torch.Tensor
    scale: float


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
