"""The sums that delta methods add to the base: all of the differences, or those that agree in sign."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from gramfuse_shared.fusion.methods.method import Delta, DeltaSum
from gramfuse_shared.fusion.workspace import Workspace

Sparsify = Callable[[Delta], torch.Tensor]

ELECTING: Final = 0
"""The first turn of an elected mean; in the second the differences that agree are added."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """λ Σ cᵢ s(Dᵢ), s what makes a difference sparse. Task arithmetic's sum; mergekit weighs as here."""

    total: torch.Tensor
    scale: float
    sparsify: Sparsify

    @classmethod
    def begin(cls, count: int, dtype: torch.dtype, scale: float, sparsify: Sparsify, workspace: Workspace) -> DeltaSum:
        """Begin with zero."""
        return cls(workspace.zeros("sum", (count,), dtype), scale, sparsify)

    def add(self, delta: Delta, turn: int) -> None:  # noqa: ARG002 - there is one
        """Add a difference."""
        self.total.add_(self.sparsify(delta), alpha=delta.weight)

    def result(self) -> torch.Tensor:
        """Return the sum."""
        return self.total.mul_(self.scale)


@dataclass(frozen=True, slots=True)
class ElectedMean:
    """λ times the weighted mean of those s(Dᵢ) whose sign is that of Σ cᵢ s(Dᵢ), element by element.

    TIES-Merging, §4: "elect" takes the sign of the larger total movement, "disjoint merge" the mean of who agrees.
    Takes two turns.
    """

    signs: torch.Tensor
    total: torch.Tensor
    weights: torch.Tensor
    scale: float
    sparsify: Sparsify

    @classmethod
    def begin(cls, count: int, dtype: torch.dtype, scale: float, sparsify: Sparsify, workspace: Workspace) -> DeltaSum:
        """Begin with zero."""
        signs, total, weights = (workspace.zeros(name, (count,), dtype) for name in ("sum", "products", "weighted"))
        return cls(signs, total, weights, scale, sparsify)

    def add(self, delta: Delta, turn: int) -> None:
        """Elect with a difference, then add it where it agrees."""
        values = self.sparsify(delta)
        if turn == ELECTING:
            self.signs.add_(values, alpha=delta.weight)
            return
        agrees = values * self.signs > 0  # a sum of zero elects nobody
        self.total.add_(values * agrees, alpha=delta.weight)
        self.weights.add_(agrees, alpha=delta.weight)

    def result(self) -> torch.Tensor:
        """Return the mean; zero where nobody moved, or where they cancel."""
        return self.total.div_(self.weights.clamp_(min=torch.finfo(self.weights.dtype).tiny)).mul_(self.scale)
