"""How much of RegMean's objective a merge gains over the average, followed on some rows of the outputs.

f(X) = Σ aᵢ‖(X − Dᵢ)Xᵢᵀ‖² = Σ aᵢ tr((X − Dᵢ)Gᵢ(X − Dᵢ)ᵀ), RegMean eq. 1 around the reference, is a sum over rows of X,
so it is known of single rows without the others. It costs one product of few rows: what each contribution adds to R has
been computed anyway.
"""

from typing import Final

import torch

from gramfuse_shared.fusion import packing, symmetric
from gramfuse_shared.fusion.precision import GramSum, Precision

FOLLOWED_ROWS: Final = 16
"""Rows of a group of linears that are followed: their product with S is about 1 % of a merge."""

_NOISE: Final = 16 * torch.finfo(torch.float32).eps


class Objective:
    """f of followed rows, as the sums of one pass over the contributions give it.

    S and R hold Pᵢ = aᵢ(αGᵢ + diag qᵢ), qᵢ what the method adds to the diagonal. With δ = Σaᵢqᵢ, Yᵢ = DᵢPᵢ − Dᵢ∘aᵢqᵢ
    and e = Σ⟨Yᵢ, Dᵢ⟩, αf(X) = e − 2⟨X, ΣYᵢ⟩ + ⟨XS, X⟩ − ⟨X∘X, δ⟩. α is the same for all and cancels in a share.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        """Begin with nothing.

        Args:
            rows: which rows of the differences [Σout, in] are followed, int64 [k], on their device.
        """
        self.rows = rows
        self._constant: torch.Tensor | float = 0.0
        self._products: torch.Tensor | float = 0.0
        self._linear: torch.Tensor | float = 0.0
        self._diagonal: torch.Tensor | float = 0.0
        self._is_known = True

    def products_of(self, sums: GramSum) -> torch.Tensor:
        """Return a copy of the followed rows of R."""
        return sums.products.index_select(0, self.rows)

    def add(self, precision: Precision, difference: torch.Tensor | None, before: torch.Tensor, sums: GramSum) -> None:
        """Take in a contribution that was just added to the sums.

        Args:
            precision: Pᵢ; where it holds nothing of G off the diagonal (α = 0), f is not known.
            difference: Dᵢ [Σout, in], None where it is zero.
            before: the followed rows of R without it.
            sums: S and R with it.
        """
        gram = precision.of_gram
        if gram is None or gram.alpha == 0.0:
            self._is_known = False
            return
        added: torch.Tensor | float = 0.0
        if gram.alpha < 1.0 or gram.ridge:
            energy = packing.diagonal(gram.gram, gram.width).to(sums.total.dtype)
            added = gram.scale * ((1.0 - gram.alpha) * energy + gram.ridge)
        self._diagonal = self._diagonal + added
        if difference is None:
            return
        rows = difference.index_select(0, self.rows)
        products = self.products_of(sums) - before
        term = products - rows * added
        self._products = self._products + products
        self._linear = self._linear + term
        self._constant = self._constant + _dot(term, rows)

    def gained(self, delta: torch.Tensor, mean: torch.Tensor, sums: GramSum, *, is_exact: bool) -> float | None:
        """Return 1 − f(Δ)/f(D̄), of the followed rows: 0 is the average, 1 an exact fit of all; below 0 is worse.

        Args:
            delta: the followed rows of the solution Δ, [k, in].
            mean: those of D̄.
            sums: S; R may have been used up.
            is_exact: whether ΔS = R, which saves half of the product.

        Returns:
            None where f is not known. 0 where the average fits all contributions: there is nothing to gain.
        """
        if not self._is_known:
            return None
        if is_exact:
            found = self._value(delta, self._products)
            quadratic = symmetric.times_few(mean, sums.total)
        else:
            of_delta, quadratic = symmetric.times_few(torch.cat([delta, mean]), sums.total).chunk(2)
            found = self._value(delta, of_delta)
        average = float(self._value(mean, quadratic))
        # statistics are float32: what is left of the sums' size after cancellation is their rounding
        noise = _NOISE * (float(self._constant) + abs(float(_dot(quadratic, mean))))
        return 0.0 if average <= noise else 1.0 - float(found) / average

    def _value(self, rows: torch.Tensor, products: torch.Tensor | float) -> torch.Tensor | float:
        """Return αf(X) of followed rows X, whose XS is known."""
        inner = products - 2 * self._linear - rows * self._diagonal
        return self._constant + _dot(rows, inner)


def _dot(left: torch.Tensor, right: torch.Tensor | float) -> torch.Tensor:
    return (left * right).sum(dtype=torch.float64)
