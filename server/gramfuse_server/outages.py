"""What is written of a database that is away: one line for each cause, once a minute, however often it is asked."""

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gramfuse_server.database import is_outage

EVERY_SECONDS: Final = 60.0
_ENGINE_WAITS: Final = "the job engine waits for the database"
_TRACEBACK: Final = "Traceback (most recent call last):"
_BACKGROUND: Final = re.compile(r"\(Background on this error at: \S+?\)\.?")
_OF_AN_OUTAGE: Final = re.compile(
    r"Database connection failed|OperationalError|SqlclientUnableToEstablish|AdminShutdown|CannotConnectNow|"
    r"server closed the connection|connection failed|failed to resolve host"
)
"""As drivers word it in messages of the job engine, which come as text alone."""


@dataclass(slots=True)
class Repeats:
    """Lines that would be written again and again: the first is due, and then one each minute."""

    monotonic: Callable[[], float] = time.monotonic
    every_seconds: float = EVERY_SECONDS
    _told: dict[str, float] = field(default_factory=dict)
    _left_out: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, kind: str) -> int | None:
        """Return how many of a kind were left out since the last one, or None if this one is to be, too."""
        with self._lock:
            now = self.monotonic()
            if now - self._told.get(kind, float("-inf")) < self.every_seconds:
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return None
            self._told[kind] = now
            return self._left_out.pop(kind, 0)

    def over(self, kind: str) -> bool:
        """Forget a kind, so that its next line is due; tell whether one had been written."""
        with self._lock:
            self._left_out.pop(kind, None)
            return self._told.pop(kind, None) is not None


class EngineOutages(logging.Filter):
    """Shortens what the job engine says of a database that is away: each of its threads does, with whole tracebacks."""

    def __init__(self, repeats: Repeats | None = None) -> None:
        super().__init__()
        self._repeats = Repeats() if repeats is None else repeats

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass everything else on as it is."""
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage()
        if error is not None and is_outage(error):
            message = f"{message}: {error}"
        elif error is not None or not _OF_AN_OUTAGE.search(message):
            return True
        left_out = self._repeats.due(_ENGINE_WAITS)
        if left_out is None:
            return False
        more = f"; {left_out} lines like this were left out" if left_out else ""
        record.msg, record.args, record.exc_info = f"{_ENGINE_WAITS}: {in_one_line(message)}{more}", (), None
        return True


def describe(error: BaseException) -> str:
    """Say in one line what the database's driver says of an error."""
    return in_one_line(str(getattr(error, "orig", None) or error))


def in_one_line(text: str) -> str:
    """Put a message into one line; of tracebacks within it only what was raised in the end stays."""
    head, _, rest = text.partition(_TRACEBACK)
    raised = [line for line in rest.rpartition(_TRACEBACK)[2].splitlines() if line[:1].strip()]
    return " ".join(_BACKGROUND.sub("", " ".join([head, *raised])).split())
