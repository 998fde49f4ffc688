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
    "accumulate_rows",
    "block_rows",
    "diagonal",
    "pack",
    "packed_length",
    "packed_zeros",
    "trace",
    "unpack",
    "unpack_lower",
]


_BLOCKS_AT_ONCE: Final = 8


def packed_zeros(
    width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """Return the zero matrix of the given width, packed: [packed_length(width)]."""
    return torch.zeros(packed_length(width), dtype=dtype, device=device)


def block_rows(flat: torch.Tensor, width: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (s, e, G[s:e, :e]) for each block row; the tensors are views into `flat`.

    Raises:
        ValueError: `flat` is not the packed form of a matrix of this width.
    """
    if flat.ndim != 1 or flat.numel() != packed_length(width):
        msg = f"a packed matrix of width {width} is [{packed_length(width)}], not {list(flat.shape)}"
        raise ValueError(msg)
    offset = 0
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        length = (end - start) * end
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


def accumulate_rows(flat: torch.Tensor, rows: torch.Tensor) -> None:
    """Add XᵀX in place: flat += packed(rowsᵀ rows), the lower block rows only.

    Args:
        flat: the packed sum of width d, float32 or float64.
        rows: [n, d] of any floating dtype on the same device; n may be 0. Products of bfloat16 rows on CUDA are
            bf16×bf16→fp32: such a product is exact in fp32. Rows of another dtype are converted to the sum's.

    Raises:
        ValueError: the widths differ.
    """
    if rows.shape[0] == 0:
        return
    width = rows.shape[1]
    if rows.is_cuda:
        _accumulate_on_cuda(flat, rows)
        return
    rows = rows.to(flat.dtype)
    for start, end, block in block_rows(flat, width):
        block.addmm_(rows[:, start:end].T, rows[:, :end])


def _accumulate_on_cuda(flat: torch.Tensor, rows: torch.Tensor) -> None:
    """Add as `accumulate_rows` does, some block rows in one product: tensor cores are idle on 128 rows."""
    width = rows.shape[1]
    exact_in_tensor_cores = rows.dtype == torch.bfloat16 and flat.dtype == torch.float32
    rows = rows if exact_in_tensor_cores else rows.to(flat.dtype)
    blocks = list(block_rows(flat, width))
    for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
        together = blocks[first : first + _BLOCKS_AT_ONCE]
        begin, stop = together[0][0], together[-1][1]
        left, right = rows[:, begin:stop].T, rows[:, :stop]
        product = torch.mm(left, right, out_dtype=torch.float32) if exact_in_tensor_cores else left @ right
        for start, end, block in together:
            block.add_(product[start - begin : end - begin, :end])


def diagonal(flat: torch.Tensor, width: int) -> torch.Tensor:
    """Return the diagonal as a new tensor [d]."""
    return torch.cat([block[:, start:end].diagonal() for start, end, block in block_rows(flat, width)])


def trace(flat: torch.Tensor, width: int) -> float:
    """Return the sum of the diagonal, added in float64."""
    return float(diagonal(flat, width).double().sum())
