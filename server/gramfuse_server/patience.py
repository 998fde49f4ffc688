"""Work that waits: whatever is safe to repeat is done again once the database answers, or once there is room."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gramfuse_server import outages
from gramfuse_server.database import is_outage
from gramfuse_shared.errors import StorageFullError

PAUSE_SECONDS: Final = 1.0
ROOM_PAUSE_SECONDS: Final = 2.0

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class WorkerStopsError(BaseException):
    """This process ends: the workflow stays pending, and another worker takes it over.

    Not an Exception, because DBOS records those as the workflow's outcome.
    """


@dataclass(frozen=True, slots=True)
class Patience:
    """Waits until `stopping` is set."""

    stopping: threading.Event = field(default_factory=threading.Event)
    _outages: outages.Repeats = field(default_factory=outages.Repeats)

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what the work gives, which is done again as often as the database is away.

        Raises:
            WorkerStopsError: the process is to end, and the database is still away.
        """
        while True:
            try:
                done = work()
            except SQLAlchemyError as error:
                if not is_outage(error):
                    raise
                if (left_out := self._outages.due("database")) is not None:
                    _log.warning(
                        "the database does not answer; trying again",
                        error=type(error).__name__,
                        reason=outages.describe(error),
                        left_out=left_out,
                    )
                self._pause(PAUSE_SECONDS, error)
            else:
                self._outages.over("database")
                return done

    def for_room(self, work: Callable[[], T]) -> T:
        """Return what the work gives, which is done again as often as a disk is full.

        Raises:
            WorkerStopsError: the process is to end, and the disk is still full.
        """
        while True:
            try:
                return work()
            except StorageFullError as error:
                _log.warning("waiting for room", reason=error.message)
                self._pause(ROOM_PAUSE_SECONDS, error)

    def _pause(self, seconds: float, error: Exception) -> None:
        if self.stopping.wait(seconds):
            raise WorkerStopsError from error
