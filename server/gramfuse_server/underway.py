"""Which workflows this process carries out in this moment, to find those that it only seems to."""

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

PATIENCE: Final = timedelta(seconds=10)
"""For which a workflow may stand between its claim and its begin, or between its end and the note of it."""


@dataclass(frozen=True, slots=True)
class Underway:
    """A bag that workflows enter and leave. One may be in it twice: taken away, its thread not yet ended, and back."""

    _ids: Counter[str] = field(default_factory=Counter)
    _missed: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def carrying_out(self, workflow: str) -> Iterator[None]:
        """Count a workflow as carried out within the block."""
        with self._lock:
            self._ids[workflow] += 1
        try:
            yield
        finally:
            with self._lock:
                self._ids[workflow] -= 1
                if not self._ids[workflow]:
                    del self._ids[workflow]

    def lost(self, claimed: Collection[str], monotonic: float) -> list[str]:
        """Return those of this process's claimed workflows that it has not carried out for a while.

        Args:
            claimed: what stands as this process's.
            monotonic: the present, in seconds.
        """
        with self._lock:
            missing = {workflow for workflow in claimed if not self._ids[workflow]}
        since = {workflow: self._missed.get(workflow, monotonic) for workflow in missing}
        found = sorted(workflow for workflow, at in since.items() if monotonic - at >= PATIENCE.total_seconds())
        self._missed.clear()
        self._missed.update((workflow, at) for workflow, at in since.items() if workflow not in found)
        return found
