"""The sums that delta methods add to the base: all of the differences, or those that agree in sign."""

from dataclasses import dataclass
from typing import ClassVar, Final, Self

import torch

from gramfuse_shared.fusion.workspace import Workspace

ELECTING: Final = 0
"""The first turn of an elected mean; in the second the differences that agree are added."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Σ cᵢDᵢ. Task arithmetic's sum; mergekit weighs as here."""

    turns: ClassVar[int] = 1

    total: torch.Tensor

    @classmethod
    def begin(cls, count: int, dtype: torch.dtype, workspace: Workspace) -> Self:
        """Begin with zero."""
        return cls(workspace.zeros("sum", (count,), dtype))

    def add(self, values: torch.Tensor, weight: float, turn: int) -> None:  # noqa: ARG002 - there is one
        """Add a difference."""
        self.total.add_(values, alpha=weight)

    def result(self) -> torch.Tensor:
        """Return the sum."""
        return self.total


@dataclass(frozen=True, slots=True)
class ElectedMean:
    """The weighted mean of those Dᵢ whose sign is that of Σ cᵢDᵢ, element by element.

    TIES-Merging, §4: "elect" takes the sign of the larger total movement, "disjoint merge" the mean of who agrees.
    """

    turns: ClassVar[int] = 2

    signs: torch.Tensor
    total: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def begin(cls, count: int, dtype: torch.dtype, workspace: Workspace) -> Self:
        """Begin with zero."""
        return cls(*(workspace.zeros(name, (count,), dtype) for name in ("sum", "products", "weighted")))

    def add(self, values: torch.Tensor, weight: float, turn: int) -> None:
        """Elect with a difference, then add it where it agrees."""
        if turn == ELECTING:
            self.signs.add_(values, alpha=weight)
            return
        agrees = values * self.signs > 0  # a sum of zero elects nobody
        self.total.add_(values * agrees, alpha=weight)
        self.weights.add_(agrees, alpha=weight)

    def result(self) -> torch.Tensor:
        """Return the mean; zero where nobody moved, or where they cancel."""
        return self.total.div_(self.weights.clamp_(min=torch.finfo(self.weights.dtype).tiny))
