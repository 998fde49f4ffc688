"""Borders between what a process does, at which it can be killed, or sleep while others take its work over.

A border lies before and behind every write and deletion of a blob, before every transaction begins, and before it
commits. What happens at one is decided by whoever plays: a worker's step is a `Course`, in a thread of its own that
runs only while the play waits for it; a request to the API can be told to end at its n-th border.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event

from gramfuse_server.blobs import Blobs
from gramfuse_server.database import Database


class KilledError(BaseException):
    """The worker's process ends here: nothing that follows happens, as little is caught."""


class ApiKilledError(Exception):
    """The API's process ends here. An Exception, because the event loop is the test's own; the answer is a 500."""


class Course:
    """A step of a worker, from border to border."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._left: int | None = None
        self._dies = False
        self._error: BaseException | None = None
        self.ended = False
        self.killed = False

    def advance(self, borders: int | None = None, *, dies: bool = False) -> None:
        """Cross so many borders, None: all that come; at the next one die, or stop until the next call."""
        self._left, self._dies = borders, dies
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._came.acquire()
        if self.ended:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def cross(self, *, stops: bool) -> None:
        """Be at a border; one within a transaction is none to stop at, since others would wait for its locks."""
        if self.killed:
            raise KilledError
        if self._left is None:
            return
        if self._left > 0:
            self._left -= 1
        elif self._dies:
            self.killed = True
            raise KilledError
        elif stops:
            self._came.release()
            self._go.acquire()
            if self._dies and self._left == 0:
                self.killed = True
                raise KilledError

    def _run(self) -> None:
        _present.course = self
        try:
            self._step()
            self.cross(stops=True)  # all is done, and nobody knows it yet
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._error = error
        finally:
            self.ended = True
            self._came.release()


_present = threading.local()


@dataclass
class Borders:
    """All borders of one server."""

    api_left: int | None = None
    _api_killed: bool = False
    crossed: list[str] = field(default_factory=list)

    def kill_api(self, borders: int) -> None:
        """Let the next request end at a border."""
        self.api_left, self._api_killed = borders, False

    def revive_api(self) -> bool:
        """Let requests reach their ends again; tell whether one was killed."""
        killed, self._api_killed, self.api_left = self._api_killed, False, None
        return killed

    def cross(self, place: str, *, stops: bool = True) -> None:
        course: Course | None = getattr(_present, "course", None)
        if course is not None:
            course.cross(stops=stops)
        elif self._api_killed or self.api_left == 0:
            self._api_killed = True
            raise ApiKilledError(place)
        elif self.api_left is not None:
            self.api_left -= 1

    def watch(self, database: Database) -> None:
        """Put borders around a database's transactions that write."""
        event.listen(database.write, "checkout", lambda *_: self.cross("begin"))  # a moment before it begins
        event.listen(database.write, "commit", lambda _: self.cross("commit", stops=False))


@dataclass(frozen=True, slots=True)
class BorderedBlobs(Blobs):
    """A blob store whose writes and deletions lie between borders."""

    borders: Borders = field(default_factory=Borders)

    def put(self, key: str, content: bytes | bytearray | memoryview | Path) -> bool:
        self.borders.cross("put")
        new = Blobs.put(self, key, content)
        self.borders.cross("stored")
        return new

    def delete(self, key: str) -> None:
        self.borders.cross("delete")
        Blobs.delete(self, key)
        self.borders.cross("deleted")


def bordered(blobs: Blobs, borders: Borders) -> Any:
    """The same store, with borders."""
    return BorderedBlobs(blobs.store, borders)
