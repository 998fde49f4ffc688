"""Arithmetic on symmetric matrices [d, d] of which the lower triangle counts; what stands above it is not meaningful.

The products of a merge read these matrices at full GEMM speed, and its factorization works in place on them.
"""

from collections.abc import Iterator
from typing import Final

import torch

from gramfuse_shared.fusion.packing import BLOCK, block_rows

PANEL: Final = 1024
"""Columns of a product that are computed at once: three large products each, of what lies left of, on and below the
diagonal. Only the square on the diagonal is mirrored, a small part of a wide matrix."""


def expand(flat: torch.Tensor, out: torch.Tensor) -> None:
    """Write a packed matrix into the lower triangle of `out` [d, d], converted to its dtype."""
    for start, end, block in block_rows(flat, out.shape[0]):
        out[start:end, :end].copy_(block)


def panels(width: int) -> Iterator[slice]:
    """Cut the rows, or columns, of a matrix of this width into panels."""
    for start in range(0, width, PANEL):
        yield slice(start, min(start + PANEL, width))


def add_(total: torch.Tensor, term: torch.Tensor, *, alpha: float) -> None:
    """Add alpha·term to the lower triangle of `total`, in place."""
    for rows in panels(total.shape[0]):
        total[rows, : rows.stop].add_(term[rows, : rows.stop], alpha=alpha)


def add_product_(out: torch.Tensor, left: torch.Tensor, matrix: torch.Tensor, *, alpha: float = 1.0) -> None:
    """Add alpha·left @ S to `out`, [m, d], in place; completes the squares on the diagonal of `matrix`.

    2 m d² operations, as for a full matrix.
    """
    for panel in panels(matrix.shape[0]):
        _mirror(matrix[panel, panel])
        columns, before, behind = out[:, panel], slice(panel.start), slice(panel.stop, None)
        columns.addmm_(left[:, panel], matrix[panel, panel], alpha=alpha)
        if panel.start:
            columns.addmm_(left[:, before], matrix[panel, before].T, alpha=alpha)
        if panel.stop < matrix.shape[0]:
            columns.addmm_(left[:, behind], matrix[behind, panel], alpha=alpha)


def times_few(left: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return left @ S for few rows, [k, d]: `matrix` is read once and stays as it is.

    Tiles of `BLOCK` on the diagonal must be whole, as `expand` leaves them.
    """
    if matrix.is_cuda:
        lower = matrix.tril()
        return left @ (lower + lower.tril(-1).T)
    columns = left.T.contiguous()  # [d, k]: a block row of S is read along its rows, twice while it is in the cache
    product = torch.zeros_like(columns)
    for start in range(0, matrix.shape[0], BLOCK):
        end = min(start + BLOCK, matrix.shape[0])
        product[start:end].addmm_(matrix[start:end, :end], columns[:end])
        if start:
            product[:start].addmm_(matrix[start:end, :start].T, columns[start:end])
    return product.T


def _mirror(square: torch.Tensor) -> None:
    """Copy the lower triangle to the upper one; on the CPU by blocks, a transposed copy within the cache."""
    width = square.shape[0]
    step = width if square.is_cuda else BLOCK
    for start in range(0, width, step):
        end = min(start + step, width)
        if start:
            square[:start, start:end].copy_(square[start:end, :start].T)
        tile = square[start:end, start:end].tril()
        square[start:end, start:end] = tile + tile.tril(-1).T
