"""The second moment of a difference: the Gram matrix that weights alone give."""

import torch

from gramfuse_shared.fusion import packing


def second_moment(difference: torch.Tensor, *, trace: float) -> torch.Tensor:
    """Return DᵀD brought to this trace, packed, in the dtype of D.

    Args:
        difference: D [m, d], float32 or float64; not changed.
        trace: of the result; where D is zero, the result is too.
    """
    packed = packing.packed_zeros(difference.shape[1], dtype=difference.dtype, device=difference.device)
    # added in float64: squares of tiny or of huge differences are beyond float32
    norm = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    if norm < torch.finfo(difference.dtype).tiny:
        return packed
    for start, end, block in packing.block_rows(packed, difference.shape[1]):
        # divided by the norm before and after, for the same reason
        torch.mm((difference[:, start:end] / norm).T, difference[:, :end], out=block)
        block.div_(norm).mul_(trace)
    return packed
