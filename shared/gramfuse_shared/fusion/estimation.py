"""Estimate the Gram matrix that a contribution did not send from what training changed."""

from dataclasses import dataclass

import torch

from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.methods.method import Gram
from gramfuse_shared.fusion.second_moment import second_moment


@dataclass(slots=True)
class Measured:
    """What the Gram matrices of those who measured a tap have in common: the size of an estimate, not its shape.

    Attributes:
        members: how many there were.
        energy: Σ tr(Gᵢ)/nᵢ.
        rows: Σ nᵢ.
    """

    members: int = 0
    energy: float = 0.0
    rows: int = 0

    def add(self, gram: Gram) -> None:
        """Take one into account."""
        self.members += 1
        self.energy += packing.trace(gram.packed, gram.width) / gram.rows
        self.rows += gram.rows

    def estimate(self, difference: torch.Tensor) -> Gram:
        """Return Ĝ = n̂ t̂ DᵀD/tr(DᵀD), with n̂ the mean of the rows and t̂ that of the traces per row.

        A step of gradient descent moves a layer y = Wx by a multiple of Σ δxᵀ over its rows, δ the gradient at y. So D
        is such a sum, and DᵀD = Σₛₜ (δₛᵀδₜ) xₛxₜᵀ: where the δ of different rows are uncorrelated and of a size that
        does not depend on x, what is expected of it is proportional to Σ xxᵀ = G. Hameed et al., "Model Merging via
        Data-Free Covariance Estimation", arXiv 2604.01329. Linears that read one tap are stacked, as if they were one
        layer: what a checkpoint keeps in one tensor or in three has one estimate.

        Args:
            difference: D = W − W_base of all linears of the tap, [Σout, in], float32 or float64, not changed.

        Returns:
            Ĝ packed, in the dtype of D, over n̂ rows. Without any difference it is zero: nothing is known then.

        Raises:
            ValueError: nobody measured the tap, so there is no size to take.
        """
        if not self.members:
            msg = "an estimate takes its size from measured statistics, and there are none"
            raise ValueError(msg)
        rows = max(1, round(self.rows / self.members))
        packed = second_moment(difference, trace=rows * self.energy / self.members)
        return Gram(packed, difference.shape[1], rows)
