"""The second moments of one example's rows, scaled as a scales file says, and their joint norm. Pure."""

import math
from collections.abc import Mapping

import torch

from gramfuse.measuring.single_examples import Rows


def scaled_rows(rows: torch.Tensor, root_mean_square: torch.Tensor) -> torch.Tensor:
    """Return z = x / (rms·√d) of rows x [n, d], float64: on public text the mean of ‖z‖² is about 1.

    Args:
        rows: [n, d], as a model computed them.
        root_mean_square: of each feature, [d] float64, all positive.
    """
    scale = root_mean_square.to(rows.device) * math.sqrt(rows.shape[-1])
    return rows.double() / scale


def scaled(rows: Rows, root_mean_squares: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return z of an example's rows by tap, as above."""
    return {tap: scaled_rows(read, root_mean_squares[tap]) for tap, read in rows.items()}


def joint_norm(scaled: Mapping[str, torch.Tensor]) -> float:
    """Return √Σ‖M‖² over taps, M = mean over the example's rows of z zᵀ, Frobenius norm, float64.

    ‖ZᵀZ‖ = ‖ZZᵀ‖, so that the smaller of the two products is taken.
    """
    total = 0.0
    for z in scaled.values():  # [n, d]
        count = z.shape[0]
        if count:
            product = z @ z.T if count < z.shape[1] else z.T @ z
            total += float(product.square().sum()) / count**2
    return math.sqrt(total)
