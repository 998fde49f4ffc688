"""Symmetric matrices as the block rows of their lower triangle, and arithmetic on them without unpacking.

A packed matrix is one flat tensor: the block rows G[s:e, :e] for blocks [s, e) of `BLOCK` rows, each row-major, one
behind the other. Half the bytes of the full matrix, and exactly what a blocked XᵀX produces. The square tile on the
diagonal of each block row holds both of its halves.
"""

from collections.abc import Iterator
from typing import Final

import torch

from gramfuse_shared.contract.statistics_file import BLOCK, packed_length

__all__ = [
    "BLOCK",
    "COARSE_BLOCK",
    "accumulate_rows",
    "block_rows",
    "diagonal",
    "pack",
    "packed_length",
    "packed_zeros",
    "repack",
    "trace",
    "unpack",
    "unpack_lower",
]


COARSE_BLOCK: Final = 1024
"""Rows of a block row while a sum grows on a CUDA device: tensor cores are idle on 128 rows."""


def packed_zeros(
    width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None, block: int = BLOCK
) -> torch.Tensor:
    """Return the zero matrix of the given width, packed: [packed_length(width)] for the usual blocks."""
    length = sum((min(start + block, width) - start) * min(start + block, width) for start in range(0, width, block))
    return torch.zeros(length, dtype=dtype, device=device)


def block_rows(flat: torch.Tensor, width: int, *, block: int = BLOCK) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (s, e, G[s:e, :e]) for each block row; the tensors are views into `flat`.

    Raises:
        ValueError: `flat` is not the packed form of a matrix of this width.
    """
    offset = 0
    for start in range(0, width, block):
        end = min(start + block, width)
        length = (end - start) * end
        if flat.ndim != 1 or flat.numel() < offset + length or (end == width and flat.numel() > offset + length):
            msg = f"a packed matrix of width {width} is [{packed_length(width)}], not {list(flat.shape)}"
            raise ValueError(msg)
        yield start, end, flat[offset : offset + length].view(end - start, end)
        offset += length


def pack(gram: torch.Tensor) -> torch.Tensor:
    """Pack a symmetric matrix [d, d]; what stands right of a block row's diagonal tile is not read."""
    width = gram.shape[0]
    flat = gram.new_empty(packed_length(width))
    for start, end, block in block_rows(flat, width):
        block.copy_(gram[start:end, :end])
    return flat


def unpack(flat: torch.Tensor, width: int) -> torch.Tensor:
    """Return the full matrix [d, d], exactly symmetric: the lower triangle decides."""
    full = unpack_lower(flat, width).tril_()
    return full.add_(full.tril(-1).T)


def unpack_lower(flat: torch.Tensor, width: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return [d, d] whose lower triangle is the matrix's; the strict upper triangle is not meaningful."""
    full = torch.zeros(width, width, dtype=dtype or flat.dtype, device=flat.device)
    for start, end, block in block_rows(flat, width):
        full[start:end, :end] = block
    return full


def accumulate_rows(flat: torch.Tensor, rows: torch.Tensor, *, block: int = BLOCK) -> None:
    """Add XᵀX in place: flat += packed(rowsᵀ rows), the lower block rows only.

    Args:
        flat: the packed sum of width d, float32 or float64.
        rows: [n, d] of any floating dtype on the same device; n may be 0. Products of bfloat16 and float16 rows on CUDA
            are taken with a float32 result: such a product is exact there. Rows of another dtype are converted.
        block: rows of a block row of `flat`.

    Raises:
        ValueError: the widths differ.
    """
    if rows.shape[0] == 0:
        return
    exact_in_tensor_cores = (
        rows.is_cuda and rows.dtype in {torch.bfloat16, torch.float16} and flat.dtype == torch.float32
    )
    if not exact_in_tensor_cores:
        rows = rows.to(flat.dtype)
    for start, end, part in block_rows(flat, rows.shape[1], block=block):
        left, right = rows[:, start:end].T, rows[:, :end]
        if exact_in_tensor_cores:
            torch.addmm(part, left, right, out_dtype=torch.float32, out=part)
        else:
            part.addmm_(left, right)


def repack(flat: torch.Tensor, width: int, *, block: int) -> torch.Tensor:
    """Return a matrix that is packed in larger blocks, a multiple of the usual ones, in the usual ones."""
    fine = flat.new_empty(packed_length(width))
    parts = {start: part for start, _, part in block_rows(flat, width, block=block)}
    for start, end, part in block_rows(fine, width):
        first = start - start % block
        part.copy_(parts[first][start - first : end - first, :end])
    return fine


def diagonal(flat: torch.Tensor, width: int) -> torch.Tensor:
    """Return the diagonal as a new tensor [d]."""
    return torch.cat([block[:, start:end].diagonal() for start, end, block in block_rows(flat, width)])


def trace(flat: torch.Tensor, width: int) -> float:
    """Return the sum of the diagonal, added in float64."""
    return float(diagonal(flat, width).double().sum())
