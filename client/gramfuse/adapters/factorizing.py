"""The best product of low rank in place of a difference of weights: truncated singular values. No I/O."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Factors:
    """Δ ≈ BA, B [out, r], A [r, in] in fp32 on the CPU; `lost` is ‖Δ − BA‖²_F of these, `size` ‖Δ‖²_F."""

    b: torch.Tensor
    a: torch.Tensor
    lost: float
    size: float

    @property
    def rank(self) -> int:
        """The number of directions that are kept."""
        return self.a.shape[0]


def factorize(
    difference: torch.Tensor,
    *,
    rank: int | None = None,
    energy: float | None = None,
    device: torch.device | None = None,
) -> Factors:
    """Truncate the singular value decomposition Δ = UΣVᵀ to `rank`, or to the least rank with Σσᵢ² ≥ energy·‖Δ‖²_F.

    The eigenvectors of the smaller of ΔΔᵀ and ΔᵀΔ, in fp64, are U or V; the other factor is Δ's projection on them, so
    no singular value is divided by, and at full rank BA is Δ up to fp32 rounding. Eckart and Young, 1936: no other
    product of this rank is nearer.

    Args:
        difference: Δ [out, in], floating-point, finite, not zero.
        rank: directions to keep, at most.
        energy: in place of a rank, the share of ‖Δ‖²_F to keep, in (0, 1].
        device: where to compute; default: where Δ is.
    """
    delta = difference.to(device=device, dtype=torch.float64)  # [out, in]
    outputs, inputs = delta.shape
    tall = outputs > inputs
    values, vectors = torch.linalg.eigh(delta.T @ delta if tall else delta @ delta.T)  # ascending
    kept = min(rank or len(values), len(values))
    if energy is not None:
        shares = values.flip(0).clamp_min(0).cumsum(0)
        kept = min(int((shares < energy * shares[-1]).sum()) + 1, len(values))
    directions = vectors[:, -kept:].flip(1)  # largest first, [side, r]
    b, a = (delta @ directions, directions.T) if tall else (directions, directions.T @ delta)
    b, a = b.float(), a.float()
    lost = float((delta - b.double() @ a.double()).square().sum())
    return Factors(b.cpu().contiguous(), a.cpu().contiguous(), lost, float(delta.square().sum()))
