"""Statistics that layers are refit from, of random rows: without any model, and with the rows for the definition."""

from collections.abc import Mapping

import torch

from gramfuse.measuring.distinct import DistinctRows
from gramfuse.measuring.refit import RefitStatistics
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.stream import Stream
from gramfuse_shared.contract.manifest import CollectorSettings, Source
from gramfuse_shared.fusion import packing

WIDTH = 5


def rows_of_layers(
    outputs: Mapping[str, int],
    rows: int,
    seed: int = 0,
    *,
    width: int = WIDTH,
    scale: float = 1.0,
    dead: int | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return x̃ [rows, width+1] and, of each layer by its weight, e [rows, outputs]; the feature `dead` is zero."""
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(rows, width, generator=generator)
    if dead is not None:
        x[:, dead] = 0
    x = torch.cat([x, torch.ones(rows, 1)], dim=1)
    return x, {weight: 0.1 * torch.randn(rows, m, generator=generator) for weight, m in outputs.items()}


def layer_statistics(
    outputs: Mapping[str, int],
    rows: int,
    seed: int = 0,
    *,
    width: int = WIDTH,
    scale: float = 1.0,
    dead: int | None = None,
    base: str | None = None,
    source: Source = "mixed",
    layouts: Mapping[str, str] | None = None,
) -> RefitStatistics:
    """Return the statistics of layers that read the same rows, `rows_of_layers` with these arguments."""
    x, lacking = rows_of_layers(outputs, rows, seed, width=width, scale=scale, dead=dead)
    gram = packing.packed_zeros(width + 1)
    packing.accumulate_rows(gram, x)
    readers = tuple(sorted(outputs))
    distinct = DistinctRows({bytes([seed, row % 256, row // 256]): frozenset({(readers, 1)}) for row in range(rows)})
    statistics = Statistics(
        {readers: Stream.of(width + 1, gram, rows=rows, source=source)},
        layouts=dict(layouts or {}),  # type: ignore[arg-type] # one of two words
        distinct=distinct,
        settings=CollectorSettings(collector_version="1.0.0"),
        base=base,
    )
    return RefitStatistics(statistics, {weight: x.T @ e for weight, e in lacking.items()})
