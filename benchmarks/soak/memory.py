"""How much memory the service's processes hold, and whether it grows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

KIB_PER_MB: Final = 1e6 / 1024


def resident_mb(pid: int) -> float | None:
    """A process's resident memory; None where there is none of that number."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("VmRSS:")), None)
    return None if kib is None else int(kib) / KIB_PER_MB


@dataclass(slots=True)
class Samples:
    """Resident memory in MB by process and time."""

    by_pid: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def take(self, pids: Iterable[int], now: float) -> None:
        """Look once."""
        for pid in pids:
            held = resident_mb(pid)
            if held is not None:
                self.by_pid.setdefault(pid, []).append((now, held))

    def most(self) -> float:
        """The most that any process held at any time."""
        return max((held for samples in self.by_pid.values() for _, held in samples), default=0.0)


def growth_mb(samples: Mapping[int, Sequence[tuple[float, float]]], began: float, ended: float) -> float | None:
    """How much the process grew that grew most, between the end of the first third of a time and the time's end.

    The first third is for caches and pools to fill. Compared are medians of a sixth of the time each: one pass of the
    garbage collector is no growth. None where nobody lived through all of it.
    """
    sixth = (ended - began) / 6
    grown = []
    for taken in samples.values():
        early = [held for at, held in taken if began + 2 * sixth <= at < began + 3 * sixth]
        late = [held for at, held in taken if ended - sixth <= at <= ended]
        if early and late:
            grown.append(median(late) - median(early))
    return max(grown, default=None)
