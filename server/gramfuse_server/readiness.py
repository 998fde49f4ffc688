"""Is the server ready? Asked of database and blob store once a second at most, whoever wants to know how often."""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fastapi.concurrency import run_in_threadpool
from obstore.exceptions import BaseError
from sqlalchemy.exc import SQLAlchemyError

from gramfuse_server import schema
from gramfuse_server.belonging import count_missing
from gramfuse_server.blobs import Blobs
from gramfuse_server.database import Database

HOLDS_SECONDS: Final = 1.0
"""Anybody may ask, and the answer costs a query, a blob and a thread."""


@dataclass(slots=True)
class Readiness:
    """What was found last, and when."""

    database: Database
    blobs: Blobs
    monotonic: Callable[[], float] = time.monotonic
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _found: Mapping[str, str] = field(default_factory=dict)
    _until: float = float("-inf")

    async def checks(self) -> Mapping[str, str]:
        """Tell of each part whether it is `ok`, or what is wrong with it."""
        async with self._lock:
            if self.monotonic() >= self._until:
                self._found = await run_in_threadpool(self._check)
                self._until = self.monotonic() + HOLDS_SECONDS
            return self._found

    def _check(self) -> dict[str, str]:
        checks: dict[str, str] = {}
        try:
            current, head = schema.current(self.database), schema.head()
            checks["database"] = "ok"
            checks["migrations"] = "ok" if current == head else f"at {current}, this version needs {head}"
        except SQLAlchemyError as error:
            checks["database"] = type(error).__name__  # the message may name hosts and users
        try:
            self.blobs.probe(socket.gethostname())
            checks["blobs"] = "ok"
        except OSError:
            checks["blobs"] = "cannot be written and read"
        if set(checks.values()) == {"ok"} and self._is_foreign():
            checks["blobs"] = "has none of the files that the database names"
        return checks

    def _is_foreign(self) -> bool:
        try:
            return count_missing(self.database, self.blobs) > 0
        except (BaseError, SQLAlchemyError):  # gone between two looks, which the next one tells
            return False
