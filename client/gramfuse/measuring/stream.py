"""One sum over the rows that a set of layers reads: how it grows, and where the rows come from."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

import torch

from gramfuse_shared.contract.manifest import Source
from gramfuse_shared.errors import StatisticsMalformedError
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging.exact_products import exact_products

_WORST_LAST: Final[tuple[Source, ...]] = ("mixed", "unknown", "embeddings")
"""A sum is as revealing as its worst part; `unknown` is treated like `embeddings`."""


def worst_source(sources: Iterable[Source]) -> Source:
    """Return the most revealing of the sources; `unknown` of none."""
    return max(sources, key=_WORST_LAST.index, default="unknown")


@contextmanager
def exact_sums(device: torch.device) -> Iterator[None]:
    """Add up within: no gradient flows through a sum, and autocast would take its products in half precision."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), exact_products():
        yield


@dataclass(slots=True)
class Stream:
    """Sum over the rows that one set of layers reads.

    Attributes:
        width: features of a row.
        rows: how many were added.
        source: where the rows come from.
        weights: Σw and Σw² of weighted rows, float64; None where rows count alike, or where it is not known.
    """

    width: int
    rows: int = 0
    source: Source = "unknown"
    weights: torch.Tensor | None = None
    _settled: torch.Tensor | None = None
    """Packed, fp32."""
    _growing: torch.Tensor | None = None
    """What was added on a CUDA device since, packed in coarse blocks."""

    @classmethod
    def of(
        cls, width: int, gram: torch.Tensor, *, rows: int, source: Source, weights: torch.Tensor | None = None
    ) -> Self:
        """Return a stream of a packed sum."""
        return cls(width, rows, source, weights, gram)

    @property
    def gram(self) -> torch.Tensor:
        """XᵀX packed, fp32; on the CPU where the rows came from a CUDA device."""
        if self._growing is not None:
            part = packing.repack(self._growing, self.width, block=packing.COARSE_BLOCK).cpu()
            self._settled = part if self._settled is None else self._settled.cpu().add_(part)
            self._growing = None
        if self._settled is None:
            self._settled = _ordinary_zeros(self.width, torch.device("cpu"))
        return self._settled

    def add_rows(self, rows: torch.Tensor) -> None:
        """Add XᵀX of rows [n, width] on any device. The count of rows is added by whoever knows it."""
        if not rows.is_cuda:
            gram = self.gram if self._settled is not None else _ordinary_zeros(self.width, rows.device)
            self._settled = gram.to(rows.device)
            packing.accumulate_rows(self._settled, rows)
            return
        if self._growing is not None and self._growing.device != rows.device:
            self._settled = self.gram
        if self._growing is None:
            self._growing = _ordinary_zeros(self.width, rows.device, block=packing.COARSE_BLOCK)
        packing.accumulate_rows(self._growing, rows, block=packing.COARSE_BLOCK)

    def add_weighted_rows(self, rows: torch.Tensor, weights: torch.Tensor) -> None:
        """Add Σ wxxᵀ of rows [n, width] with weights [n, 1], none of them negative."""
        self.add_rows(rows * weights.sqrt())
        weights = weights.double()
        part = torch.stack([weights.sum(), weights.square().sum()])
        self.weights = part if self.weights is None else self.weights.to(part.device) + part

    @property
    def effective_rows(self) -> float | None:
        """How many rows of equal weight say as much: (Σw)²/Σw² (Kish, 1965); None where that is not known."""
        if self.weights is None:
            return None
        total, squares = self.weights.tolist()
        return total**2 / squares if squares > 0 else 0.0

    def adopt(self, other: "Stream") -> None:
        """Take over the sum, but not the count, of another stream of the same layers."""
        self._settled = self.gram.add_(other.gram.to(self.gram.device))

    def __add__(self, other: Self) -> Self:
        if self.width != other.width:
            msg = f"the same layers read {self.width} features here and {other.width} there: these are other models"
            raise StatisticsMalformedError(msg)
        gram = self.gram + other.gram.to(self.gram.device)
        source = worst_source((self.source, other.source))
        known = [stream.weights.cpu() for stream in (self, other) if stream.weights is not None]
        weights = torch.stack(known).sum(dim=0) if known else None
        return type(self).of(self.width, gram, rows=self.rows + other.rows, source=source, weights=weights)

    def copy(self) -> Self:
        """Return a stream of the same rows with memory of its own."""
        gram = self.gram.clone()  # the weights are never changed in place
        return type(self).of(self.width, gram, rows=self.rows, source=self.source, weights=self.weights)


def _ordinary_zeros(width: int, device: torch.device, *, block: int = packing.BLOCK) -> torch.Tensor:
    """Return packed zeros that are an ordinary tensor even where inference mode is on."""
    with torch.inference_mode(mode=False):
        return packing.packed_zeros(width, device=device, block=block)
