"""Asks /healthz again and again, from a process of its own, and says how long each answer took.

python -m benchmarks.soak.probing PORT FILE
"""

import contextlib
import http.client
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EVERY_SECONDS: Final = 0.05
PATIENCE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Probe:
    """When it began, by the machine's monotonic clock, and how long the answer took; `well` if it was 200."""

    began: float
    seconds: float
    well: bool

    @property
    def ended(self) -> float:
        """When the answer was there."""
        return self.began + self.seconds


@dataclass(frozen=True, slots=True)
class Downtime:
    """From the kill of an API until the next one was ready."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Health:
    """What the probes of a live API say, in milliseconds; `failed` are those that were not answered well."""

    probes: int
    failed: int
    p50: float
    p99: float
    most: float


def judge_health(probes: Iterable[Probe], downtimes: Sequence[Downtime]) -> Health:
    """Leave out probes that met a dead API, and rank the others; one that failed at a live API counts in full."""
    alive = [probe for probe in probes if not any(_meet(probe, downtime) for downtime in downtimes)]
    taken = sorted(1_000 * probe.seconds for probe in alive)
    failed = sum(not probe.well for probe in alive)
    return Health(len(alive), failed, _quantile(taken, 0.5), _quantile(taken, 0.99), taken[-1] if taken else 0.0)


def read_probes(path: Path) -> list[Probe]:
    """Read what the prober wrote; a last line that is not whole is left out."""
    lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    parts = [line.split() for line in lines if line.endswith("\n")]
    return [Probe(float(began), float(seconds), well == "1") for began, seconds, well in parts]


def _meet(probe: Probe, downtime: Downtime) -> bool:
    return probe.began <= downtime.ended and probe.ended >= downtime.began


def _quantile(ranked: Sequence[float], share: float) -> float:
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


def _probe(port: int) -> Probe:
    began = time.monotonic()
    well = False
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            well = answer.status == http.client.OK
        except (OSError, http.client.HTTPException):
            well = False
    return Probe(began, time.monotonic() - began, well)


def main() -> None:
    """Probe until killed."""
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    with path.open("w", encoding="ascii", buffering=1) as file:
        while True:
            probe = _probe(port)
            file.write(f"{probe.began:.6f} {probe.seconds:.6f} {int(probe.well)}\n")
            time.sleep(max(0.0, EVERY_SECONDS - probe.seconds))


if __name__ == "__main__":
    main()
