"""Padding masks: which rows of a tensor count, and how many each example brings."""

from dataclasses import dataclass

import torch

from gramfuse.measuring.host_copy import HostCopy


class Mask:
    """A padding mask [B, T]; which rows are kept is found out once and remembered."""

    __slots__ = ("_indices", "_on_host", "keep", "origin")

    def __init__(self, origin: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        self.origin = origin
        self.keep = (origin != 0) if keep is None else keep  # [B, T]
        self._on_host = HostCopy(self.keep)
        self._indices: dict[int, torch.Tensor | None] = {}

    def drop_padding(self, rows: torch.Tensor, length: int) -> torch.Tensor:
        """Return the rows [B·length, d] of the last `length` positions without padding.

        With a key-value cache the mask spans the cached positions too, the layers' inputs only the last. On a device,
        where counting rows would wait for it, padded rows become zeros, which add nothing to a sum of squares.
        """
        if rows.is_cuda:
            keep = self.keep[:, self.keep.shape[1] - length :].to(rows.device).reshape(-1, 1)
            return rows.masked_fill(~keep, 0)
        if length not in self._indices:
            keep = self.keep[:, self.keep.shape[1] - length :].flatten().to(rows.device)
            self._indices[length] = None if bool(keep.all()) else keep.nonzero().squeeze(1)
        index = self._indices[length]
        return rows if index is None else rows.index_select(0, index)

    def lengths(self, length: int) -> tuple[int, ...]:
        """Return how many of the last `length` positions of each example are kept; waits for the device."""
        keep = self.on_host
        return tuple(int(count) for count in keep[:, keep.shape[1] - length :].sum(dim=1).tolist())

    def is_on_host(self) -> bool:
        """Tell whether `lengths` would not wait."""
        return self._on_host.is_ready()

    @property
    def on_host(self) -> torch.Tensor:
        """`keep` on the CPU; waits for it."""
        return self._on_host.values


@dataclass(frozen=True, slots=True)
class RowCount:
    """How many rows count, and how many each example brings. With a mask it is asked of it, later.

    Attributes:
        total: rows where no mask says otherwise.
        examples: how many examples bring them, each the same number; None where they belong to no example.
        mask: what says otherwise.
        positions: of each example, at the end of the mask.
    """

    total: int
    examples: int | None = None
    mask: Mask | None = None
    positions: int = 0

    def is_ready(self) -> bool:
        """Tell whether counting would not wait for a device."""
        return self.mask is None or self.mask.is_on_host()

    def per_example(self) -> tuple[int, ...] | None:
        """Return the rows of each example, None where they belong to none."""
        if self.mask is not None:
            return self.mask.lengths(self.positions)
        return None if self.examples is None else (self.total // max(self.examples, 1),) * self.examples

    def rows(self) -> int:
        """Return the rows in all."""
        return self.total if self.mask is None else sum(self.mask.lengths(self.positions))
