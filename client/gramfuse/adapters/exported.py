"""What an export wrote: layers and their errors, what is held whole, what could not be held."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ExportedLayer:
    """A linear weight as BA: its tensor and module, the rank kept of how many, and ‖Δ − BA‖_F / ‖Δ‖_F."""

    tensor: str
    module: str
    rank: int
    full_rank: int
    error: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that the merge changed and the adapter cannot hold, and why: it stays the base's."""

    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """What was written.

    Attributes:
        path: the adapter's folder.
        layers: linear weights, truncated.
        whole: tensors that the adapter holds in their whole size, exactly.
        left_out: changed tensors that it does not hold.
        error: ‖Δ − Δ′‖_F / ‖Δ‖_F over all tensors, Δ the merge's difference from the base and Δ′ the adapter's.
        bytes: of the adapter's tensors.
    """

    path: Path
    layers: tuple[ExportedLayer, ...]
    whole: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    error: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "error": self.error,
            "layers": [
                {
                    "tensor": layer.tensor,
                    "rank": layer.rank,
                    "full_rank": layer.full_rank,
                    "error": layer.error,
                }
                for layer in self.layers
            ],
            "whole": list(self.whole),
            "left_out": [{"tensor": entry.tensor, "reason": entry.reason} for entry in self.left_out],
            "bytes": self.bytes,
        }
