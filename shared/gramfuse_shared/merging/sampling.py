"""Follow a few elements and rows of a step's parameters, to say how far each member is from what came out.

Which ones follows from the parameter's name alone, so every worker follows the same.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch

from gramfuse_shared.digest import seed_of
from gramfuse_shared.fusion.objective import FOLLOWED_ROWS
from gramfuse_shared.merging.steps import CopyStep, GramStep, MergeStep, RowsStep
from gramfuse_shared.merging.terms import ReadySum

SAMPLED_ELEMENTS: Final = 4096
"""Elements of a step that distances are taken of. A merge moves few weights far, so norms of so few are right to about
3 % in the mean, and were seen 32 % off (docs/methods.md); members are compared on the same elements."""

RUN: Final = 4
"""Neighbours that are sampled together: what costs is the cache line."""

_MATRIX: Final = 2


class Sample:
    """Elements of a step's parameters, in the flat order in which the step has them: W_ref, every Dᵢ, and W."""

    def __init__(self, positions: torch.Tensor, keys: Sequence[str], device: torch.device) -> None:
        """Begin with zeros.

        Args:
            positions: int64 [k], ascending; none follow nothing.
            keys: the members' whose differences will be given.
            device: where the values are.
        """
        self._positions = positions
        self._on_device = positions.to(device)
        self._last = int(positions[-1]) if len(positions) else -1
        self._origin, self._merged = (torch.zeros(len(positions), dtype=torch.float64, device=device) for _ in range(2))
        self._differences = {key: torch.zeros(len(positions), device=device) for key in keys}

    def take_origin(self, values: torch.Tensor, start: int = 0) -> None:
        """Note W_ref of the elements from `start` on."""
        self._take(self._origin, values, start)

    def take_difference(self, key: str, values: torch.Tensor | None, start: int = 0) -> None:
        """Note a member's Wᵢ − W_ref of the elements from `start` on; None where that is zero."""
        if values is not None and key in self._differences:
            self._take(self._differences[key], values, start)

    def take_merged(self, values: torch.Tensor, start: int = 0) -> None:
        """Note W of the elements from `start` on."""
        self._take(self._merged, values, start)

    def distances(self) -> dict[str, float]:
        """Return ‖Wᵢ − W‖/‖W‖ by member key; nothing where W is zero."""
        size = float(self._merged.norm())
        if not size > 0:
            return {}
        moved = self._merged - self._origin
        return {key: float((difference - moved).norm()) / size for key, difference in self._differences.items()}

    def _take(self, target: torch.Tensor, values: torch.Tensor, start: int) -> None:
        if not len(self._positions):
            return
        flat = values.reshape(-1)
        if start == 0 and flat.numel() > self._last:
            target.copy_(flat[self._on_device])
            return
        first, last = torch.searchsorted(self._positions, torch.tensor([start, start + flat.numel()])).tolist()
        target[first:last] = flat[self._on_device[first:last] - start]


def sample_of(step: MergeStep, device: torch.device) -> Sample:
    """Return an empty sample for a step's matrices; of vectors, ready sums and what is copied it follows nothing."""
    output = step.outputs[0]
    if isinstance(step, CopyStep | RowsStep) or isinstance(step.terms, ReadySum) or len(output.shape) < _MATRIX:
        return follow_nothing(device)
    count = step.height * step.width if isinstance(step, GramStep) else math.prod(output.shape)
    return Sample(_elements(output.name, count), [term.key for term in step.terms], device)


def follow_nothing(device: torch.device) -> Sample:
    """Return a sample of no elements."""
    return Sample(torch.empty(0, dtype=torch.int64), (), device)


def rows_of(step: GramStep, among: Sequence[int] | None = None) -> torch.Tensor:
    """Choose rows of a group of linears for `Objective`, ascending; all if they are few."""
    available = torch.arange(step.height) if among is None else torch.tensor(among)
    chance = torch.Generator().manual_seed(seed_of(f"rows\n{step.outputs[0].name}"))
    return available[torch.randperm(len(available), generator=chance)[:FOLLOWED_ROWS]].sort().values


def _elements(name: str, count: int) -> torch.Tensor:
    """Choose some of so many elements: positions, ascending; all if they are few.

    With replacement where they are many: the same element twice does no harm.
    """
    if count <= SAMPLED_ELEMENTS:
        return torch.arange(count)
    chance = torch.Generator().manual_seed(seed_of(f"elements\n{name}"))
    starts = torch.randint(count - RUN + 1, (SAMPLED_ELEMENTS // RUN, 1), generator=chance).sort(0).values
    return (starts + torch.arange(RUN)).flatten().sort().values
