"""The correction of linear layers toward what their owners' own layers give, by ridge regression of the differences."""

from collections.abc import Iterable

from gramfuse_shared.fusion.products import LinearFit, ProductTerm, fit_linear


def solve_correction(terms: Iterable[ProductTerm], *, ridge: float, with_bias: bool = True) -> LinearFit:
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
        What is added, [m, d] to the weights and [m] to the biases: rows are the outputs of all layers that read the
        same, one behind the other. Of a feature that no row has it is zero.

    Raises:
        ArchitectureMismatchError: no terms, or of different widths or outputs.
        ValueError: λ is negative or not finite.
    """
    return fit_linear(terms, ridge=ridge, regularize=lambda diagonal, _: diagonal.mul_(1 + ridge), with_bias=with_bias)
