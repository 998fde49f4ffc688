"""The attack on a fine-tuned embedding matrix: rows of tokens that never occurred move by weight decay alone."""

from dataclasses import dataclass
from typing import Final

import torch

MOVED: Final = 1e-5
"""A row that moved by more than this share of its length was trained: far above what rounding in fp32 does."""


@dataclass(frozen=True, slots=True)
class MovedRows:
    """How far each row moved otherwise than by the common factor of weight decay, [V], as a share of its length."""

    distances: torch.Tensor
    decay: float

    @property
    def moved(self) -> torch.Tensor:
        """Ids of the tokens whose rows were trained, ascending."""
        return (self.distances > MOVED).nonzero().squeeze(1)


def find_moved_rows(tuned: torch.Tensor, base: torch.Tensor) -> MovedRows:
    """Compare embedding matrices [V, d]: eₜ = κ·bₜ for tokens that never occurred, κ the median of ⟨e,b⟩/⟨b,b⟩."""
    before, after = base.double(), tuned.double()
    squares = before.square().sum(1)
    there = squares > 0
    factors = (after * before).sum(1)[there] / squares[there]
    decay = float(factors.median()) if len(factors) else 1.0
    # A padding token's row is zero and cannot be divided by.
    distances = (after - decay * before).norm(dim=1) / squares.sqrt().clamp_min(1e-12)
    return MovedRows(torch.where(there, distances, (after.norm(dim=1) > 0).double()), decay)
