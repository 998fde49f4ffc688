"""What a long call tells its caller while it runs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["digest", "upload", "check", "download"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage has come. `check` is the server's own and counts no bytes."""

    stage: Stage
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[Progress], None]


def begin_check(on_progress: OnProgress | None) -> None:
    """Tell that the server's check begins."""
    if on_progress is not None:
        on_progress(Progress("check", 0, 0))


class ByteCount:
    """Counts bytes of one stage over several threads and tells each step, one at a time."""

    def __init__(self, stage: Stage, total_bytes: int, on_progress: OnProgress | None, *, done_bytes: int = 0) -> None:
        self._stage: Stage = stage
        self._total = total_bytes
        self._done = done_bytes
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self.add(0)

    def add(self, count: int) -> None:
        """Count bytes; a negative number takes back what has to be sent again."""
        with self._lock:
            self._done += count
            if self._on_progress is not None:
                self._on_progress(Progress(self._stage, self._done, self._total))


@dataclass(slots=True)
class ReadCount:
    """Counts bytes of local files in one thread and tells each step: bytes read so far, and in all."""

    total: int
    on_progress: Callable[[int, int], None]
    done: int = 0

    def add(self, count: int) -> None:
        """Count bytes."""
        self.done += count
        self.on_progress(self.done, self.total)
