"""The head that fits a merged trunk: ridge regression of the owners' logits on the features that the trunk gives."""

from collections.abc import Iterable

import torch

from gramfuse_shared.fusion.products import LinearFit, ProductTerm, fit_linear


def solve_head(terms: Iterable[ProductTerm], *, ridge: float, with_bias: bool = True) -> LinearFit:
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

    def regularize(diagonal: torch.Tensor, features: int) -> None:
        energy = diagonal[:features]  # a view: the constant's entry stays
        energy += ridge * float(energy.mean())

    return fit_linear(terms, ridge=ridge, regularize=regularize, with_bias=with_bias)
