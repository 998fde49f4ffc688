"""Times, side by side: every candidate runs once in each round, so that a slow moment of the machine hits them all."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds per comparison, and whether the sizes are those of a smoke test."""

    rounds: int = 5
    is_smoke: bool = False


def median_seconds(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return each candidate's median time over interleaved rounds, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with this many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
