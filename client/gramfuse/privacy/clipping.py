"""Adds up the second moments of single texts, each clipped, so that no text can move the sum far.

The sum is of s·M over texts, M the mean of z zᵀ over the text's rows at every tap, z = x/(rms·√d) by the project's
scales, and s = min(1, C/‖M‖) with the norm over all taps together. Two texts' clipped moments A, B are positive
semi-definite, so ⟨A, B⟩ ≥ 0 and ‖A − B‖² ≤ ‖A‖² + ‖B‖² ≤ 2C²: with one text replaced by another, the mean over n moves
by √2·C/n at most, not 2C/n.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from gramfuse.measuring.example_moments import joint_norm, scaled
from gramfuse.measuring.single_examples import Rows
from gramfuse_shared.errors import StatisticsInvalidError
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging.scales import Scales

MARGIN: Final = 1e-6
"""By which a text is clipped below C, so that rounding, some 1e-13 in float64, cannot carry it above."""

_ROWS_AT_ONCE: Final = 512
"""Rows that wait until they are added in one product."""


@dataclass(slots=True)
class ClippedSum:
    """Σ s·M over texts, packed, float64, by tap; and of how many texts.

    It holds what the texts say exactly, so it stays in memory: nothing writes it to a disk.
    """

    scales: Scales
    examples: int = 0
    clipped: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    _waiting: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    _waiting_rows: int = 0
    _roots: Mapping[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._roots = {tap.name: self.scales.root_mean_squares(tap.name) for tap in self.scales.metadata.taps}

    def add(self, rows: Rows) -> None:
        """Take in one text's rows; one without any counts, and adds nothing.

        Raises:
            StatisticsInvalidError: a row holds NaN or infinity.
        """
        read = scaled(rows, self._roots)
        norm = joint_norm(read)
        if not norm < float("inf"):
            msg = "a text's inputs of a layer hold NaN or infinity: did the training diverge?"
            raise StatisticsInvalidError(msg)
        bound = self.scales.metadata.clip * (1 - MARGIN)
        shrunk = min(1.0, bound / norm) if norm > 0 else 1.0
        self.examples += 1
        self.clipped += shrunk < 1
        for tap, z in read.items():
            if z.shape[0]:
                self._waiting.setdefault(tap, []).append(z * (shrunk / z.shape[0]) ** 0.5)
        self._waiting_rows += max((read.shape[0] for read in rows.values()), default=0)
        if self._waiting_rows >= _ROWS_AT_ONCE:
            self._settle()

    def mean(self, tap: str) -> torch.Tensor:
        """Return the mean of s·M over the texts at a tap, float64 [d, d] on the CPU."""
        self._settle()
        width = next(info.width for info in self.scales.metadata.taps if info.name == tap)
        found = self.sums.get(tap)
        packed = packing.packed_zeros(width, dtype=torch.float64) if found is None else found.cpu()
        return packing.unpack(packed, width) / max(self.examples, 1)

    def _settle(self) -> None:
        for tap, waiting in self._waiting.items():
            rows = torch.cat(waiting)
            known = self.sums.get(tap)
            if known is None:
                known = packing.packed_zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
                self.sums[tap] = known
            packing.accumulate_rows(known, rows)
        self._waiting.clear()
        self._waiting_rows = 0
