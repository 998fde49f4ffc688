"""Cholesky factors with inverted diagonal blocks, so that factorizing and solving are products of matrices.

Left-looking: block column j is S[j:, j] − L[j:, :j] L[j, :j]ᵀ, its diagonal block factorized and inverted, the rest
multiplied by the inverse. Solving substitutes block by block with the same inverses. Twice LAPACK's speed at widths of
768 to 3072, since only blocks of at most 256 are factorized by it.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import torch

_WIDE: Final = 2048
_BLOCK, _WIDE_BLOCK, _CUDA_BLOCK = 128, 256, 512
"""Rows that LAPACK factorizes at once: few, since it is slow, but enough for products to be fast."""

_ITERATIONS: Final = 3
_POWER_STEPS: Final = 1
_SIGNS: Final = 20_221_219
"""Begins the chance of a start vector's signs: the same on every machine."""


@dataclass(frozen=True, slots=True)
class Factor:
    """L of S = L Lᵀ: its lower triangle in `lower` [d, d], and the inverses of its diagonal blocks."""

    lower: torch.Tensor
    inverses: tuple[torch.Tensor, ...]
    block: int

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Self | None:
        """Factorize a symmetric matrix, d³/3 operations; None where it has no factor.

        The lower triangle is read. The matrix is overwritten.
        """
        return cls._on_cuda(matrix) if matrix.is_cuda else cls._by_products(matrix)

    @classmethod
    def _by_products(cls, matrix: torch.Tensor) -> Self | None:
        width = matrix.shape[0]
        block = _WIDE_BLOCK if width >= _WIDE else _BLOCK
        inverses: list[torch.Tensor] = []
        for start in range(0, width, block):
            end = min(start + block, width)
            column = matrix[start:, start:end]
            if start:
                column.addmm_(matrix[start:, :start], matrix[start:end, :start].T, alpha=-1)
            corner, info = torch.linalg.cholesky_ex(column[: end - start])
            # LAPACK does not promise to notice NaN, so the pivots must say it
            if int(info) != 0 or not bool(corner.diagonal().min() > 0):
                return None
            inverse = _invert(corner)
            column[: end - start] = corner
            if end < width:
                column[end - start :] = column[end - start :] @ inverse.T
            inverses.append(inverse)
        return cls(matrix, tuple(inverses), block)

    @classmethod
    def _on_cuda(cls, matrix: torch.Tensor) -> Self | None:
        """Factorize by cuSOLVER, which is as fast there; substitution by products is faster there too."""
        lower, info = torch.linalg.cholesky_ex(matrix)
        if bool((info != 0) | ~(lower.diagonal().min() > 0)):
            return None
        starts = range(0, lower.shape[0], _CUDA_BLOCK)
        corners = [lower[start : start + _CUDA_BLOCK, start : start + _CUDA_BLOCK] for start in starts]
        return cls(lower, tuple(map(_invert, corners)), _CUDA_BLOCK)

    @property
    def smallest_pivot(self) -> float:
        """The smallest squared pivot."""
        return float(self._pivots().min())

    def solve_(self, rows: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """Replace `rows` [m, d] by Y with Y S = rows, and return it; 2 m d² operations.

        `beside`, of the same shape and dtype, is overwritten: Z = Y L lies there in between.
        """
        lower, width = self.lower, self.lower.shape[0]
        bounds = self._bounds()
        for (start, end), inverse in zip(bounds, self.inverses, strict=True):
            part = rows[:, start:end]
            if start:
                part.addmm_(beside[:, :start], lower[start:end, :start].T, alpha=-1)
            torch.mm(part, inverse.T, out=beside[:, start:end])
        for (start, end), inverse in reversed(list(zip(bounds, self.inverses, strict=True))):
            part = beside[:, start:end]
            if end < width:
                part.addmm_(rows[:, end:], lower[end:, start:end], alpha=-1)
            torch.mm(part, inverse, out=rows[:, start:end])
        return rows

    def _times_lower(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ L for few rows [k, d]."""
        product = torch.zeros_like(rows)
        for start, end in self._bounds():
            product[:, :end].addmm_(rows[:, start:end], self.lower[start:end, :end])
        return product

    def _times_transpose(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ Lᵀ for few rows [k, d]."""
        product = torch.empty_like(rows)
        for start, end in self._bounds():
            torch.mm(rows[:, :end], self.lower[start:end, :end].T, out=product[:, start:end])
        return product

    def bound_condition(self, *, smallest: float) -> float | None:
        """Return a lower bound of the condition number of S, by power iteration; None where infinite.

        ‖vL‖² = vSvᵀ of a unit vector v is at most the largest eigenvalue.

        Args:
            smallest: an upper bound of the smallest eigenvalue, as any squared pivot is: L_jj² = 1/(S_j⁻¹)_jj, S_j the
                leading rows and columns.
        """
        width, device = self.lower.shape[0], self.lower.device
        vectors = torch.ones(3, width, dtype=self.lower.dtype, device=device)
        vectors[1] = self.lower[:, 0]  # S's own first row, but for its size: a step ahead
        signs = torch.randint(2, (width,), generator=torch.Generator().manual_seed(_SIGNS))
        vectors[2] = (2 * signs - 1).to(device, vectors.dtype)
        for _ in range(_POWER_STEPS):
            vectors = self._times_transpose(self._times_lower(vectors / vectors.norm(dim=1, keepdim=True)))
        halves = self._times_lower(vectors / vectors.norm(dim=1, keepdim=True))
        largest = float(halves.norm(dim=1).max()) ** 2
        condition = largest / smallest if smallest > 0 else math.inf
        return condition if math.isfinite(condition) else None

    def estimate_smallest_eigenvalue(self) -> float:
        """Estimate the smallest eigenvalue of S from above: 1/‖S⁻¹v‖ for unit vectors v, by inverse iteration.

        Pivots alone do not show it: noise of 1e-7 behind a pivot of 1e-4 appears as a pivot of 1e-3.
        """
        width = self.lower.shape[0]
        vectors = torch.ones(3, width, dtype=self.lower.dtype, device=self.lower.device)
        vectors[1, 1::2] = -1.0
        vectors[2] = 0.0
        vectors[2, int(self._pivots().argmin())] = 1.0
        largest = 0.0
        for _ in range(_ITERATIONS):
            vectors = self.solve_(vectors / vectors.norm(dim=1, keepdim=True), torch.empty_like(vectors))
            norm = float(vectors.norm(dim=1).max())
            if not math.isfinite(norm):
                return 0.0
            largest = max(largest, norm)
        return 1 / largest

    def _bounds(self) -> list[tuple[int, int]]:
        """The diagonal blocks' first and last rows."""
        width = self.lower.shape[0]
        return [(start, min(start + self.block, width)) for start in range(0, width, self.block)]

    def _pivots(self) -> torch.Tensor:
        return self.lower.diagonal().square()


def _invert(lower: torch.Tensor) -> torch.Tensor:
    identity = torch.eye(lower.shape[0], dtype=lower.dtype, device=lower.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse
