"""A worker that was told to stop does not wait for a database that stays away."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from gramfuse_server.database import Database, reading

AWAY_SECONDS: Final = 20.0
"""A restart of the database takes less."""
PAUSE_SECONDS: Final = 1.0
EXIT_ABANDONED: Final = 1

_log = structlog.get_logger(__name__)


def end_process() -> None:
    """End at once, whatever other threads wait for."""
    os._exit(EXIT_ABANDONED)


@dataclass(frozen=True, slots=True)
class Departure:
    """Watches over the end of a worker: the job engine would wait for the database for as long as it takes.

    Nobody else would start the database meanwhile: `docker compose up` with another image of it, for example, stops
    it, waits for the workers to end, and starts it behind them. What was at work is taken over, as from a worker
    that was killed.
    """

    database: Database
    worker: str
    abandon: Callable[[], None] = end_process
    monotonic: Callable[[], float] = time.monotonic
    away_seconds: float = AWAY_SECONDS
    pause_seconds: float = PAUSE_SECONDS

    @contextmanager
    def watched(self, stopping: threading.Event) -> Iterator[None]:
        """Watch over what is within, once `stopping` is set."""
        ended = threading.Event()
        threading.Thread(target=self.watch, args=(stopping, ended), name="departure", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def watch(self, stopping: threading.Event, ended: threading.Event) -> None:
        """Wait until the worker is told to stop; abandon it if the database stays away before it has ended."""
        stopping.wait()
        answered = self.monotonic()
        while not ended.wait(self.pause_seconds):
            if self._answers():
                answered = self.monotonic()
            elif (away := self.monotonic() - answered) >= self.away_seconds:
                _log.error(
                    "stops without the database; others take its work over", worker=self.worker, away=round(away)
                )
                self.abandon()
                return

    def _answers(self) -> bool:
        try:
            with reading(self.database) as session:
                session.execute(select(1))
        except SQLAlchemyError:
            return False
        return True
