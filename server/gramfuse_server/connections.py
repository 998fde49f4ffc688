"""Connections: heads that come in time and are of bounded size, and never so many that others find none.

uvicorn bounds neither with httptools: a connection that sends a byte now and then is kept for ever, a head grows
until memory ends. What cannot be an ASGI layer's business, because no request has begun yet, is done here.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gramfuse_server.api.problems import MEDIA_TYPE, problem_of
from gramfuse_shared import limits
from gramfuse_shared.errors import (
    GramfuseError,
    HeadTooLargeError,
    RequestMalformedError,
    TooSlowError,
    UnavailableError,
)

LINGER: Final = timedelta(seconds=30)
"""For how long what follows an answer that came before its request's end is still read, and thrown away.

Who hangs up at once takes the answer back: clients send all of a body before they look for it."""
READING: Final = timedelta(seconds=60)
"""Within which a caller has to take more of its answer."""
RETRY_AFTER: Final = b"retry-after: 1\r\n"

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Connections:
    """The connections of one process: at most so many, of which those that ask for nothing make room first."""

    most: int
    head_timeout: timedelta
    _waiting: dict["GuardedProtocol", None] = field(default_factory=dict)
    """Those that are between requests, or within a head; who has waited longest comes first."""

    def wait(self, connection: "GuardedProtocol") -> None:
        """Note that a connection has no request."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None

    def work(self, connection: "GuardedProtocol") -> None:
        """Note that a connection has a request, or is gone."""
        self._waiting.pop(connection, None)

    def make_room(self, count: int, newest: "GuardedProtocol") -> bool:
        """Close the connection that has waited longest, if there are too many; tell whether the newest may stay."""
        if count <= self.most:
            return True
        oldest = next(iter(self._waiting))
        if oldest is newest:
            return False
        oldest.end()
        return True

    def protocol(self) -> type[asyncio.Protocol]:
        """Return the protocol of these connections, for uvicorn."""
        return type("GuardedProtocol", (GuardedProtocol,), {"guard": self})


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, guarded. Where HTTP allows an answer, it is a problem document."""

    guard: Connections

    def __init__(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **keywords)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._in_message = False
        self._head_bytes = 0
        self._began_now = False
        self._over = False
        self._unread_bytes = 0
        self._reading: asyncio.TimerHandle | None = None

    # --- the connection -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Have room made for it, and wait for a head."""
        super().connection_made(transport)
        self.guard.wait(self)
        if not self.guard.make_room(len(self.connections), self):
            _log.warning("connection refused", connections=len(self.connections))
            self._refuse(UnavailableError("all connections are in use; try again in a moment"), RETRY_AFTER)
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._over = True
        self.guard.work(self)
        self._stop_timer()
        self._stop_watching_reader()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close it without a word: there is no request to answer."""
        self._over = True
        self.guard.work(self)
        self._stop_timer()
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what came, unless a head is too long."""
        if self._over:
            return
        if self._in_head and self._timer is None:  # the first byte behind a pause
            self._expect_head()
        super().data_received(data)
        if self._in_head and self._in_message:
            # of the piece that it began in, an unknown length belongs to what came before
            self._head_bytes += 1 if self._began_now else len(data)
            self._began_now = False
            if self._head_bytes > limits.MAX_HEAD_BYTES:
                self._refuse_head()

    def pause_writing(self) -> None:
        """Watch whether the caller reads its answer."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Believe it."""
        self._stop_watching_reader()
        super().resume_writing()

    # --- the parser's words ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = self._in_message = self._began_now = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; behind a chunked body, where uvicorn would keep them too, none."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request, if its head is one."""
        self._in_head, self._head_bytes = False, 0
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._over or size > limits.MAX_HEAD_BYTES or len(self.headers) > limits.MAX_HEADERS:
            self._refuse_head()
            return
        self.guard.work(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if not self._over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's message."""
        self._in_head, self._in_message = True, False
        if not self._over:
            super().on_message_complete()
            if self.cycle.response_complete:  # what followed its answer has come to its end
                self._stop_timer()
                self.guard.wait(self)
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of this one, which was answered before all of it was there."""
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        self.guard.wait(self)
        if self._in_message:
            self._unset_keepalive_if_required()
            self._timer = self.loop.call_later(LINGER.total_seconds(), self.end)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        if not self._over:
            self._refuse(RequestMalformedError(msg))

    # --- ends -----------------------------------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.guard.head_timeout.total_seconds(), self._head_is_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_reader(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(READING.total_seconds(), self._require_reader)

    def _stop_watching_reader(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _require_reader(self) -> None:
        if self.transport.get_write_buffer_size() > self._unread_bytes - limits.MIN_READ_BYTES:
            self.transport.abort()
        else:
            self._watch_reader()

    def _head_is_late(self) -> None:
        if not self._head_bytes:  # a browser that connected in advance
            self.end()
            return
        seconds = self.guard.head_timeout.total_seconds()
        self._refuse(TooSlowError(f"the request's head did not arrive within {seconds:g} s"))

    def _refuse_head(self) -> None:
        if not self._over:
            most = f"{limits.MAX_HEADERS} headers of {limits.MAX_HEAD_BYTES} bytes with the path"
            self._refuse(HeadTooLargeError(f"the request's head is larger than {most}"))

    def _refuse(self, error: GramfuseError, *headers: bytes) -> None:
        """Answer without the app, and close: nothing that follows could be read rightly."""
        self._over = True
        self.guard.work(self)
        self._stop_timer()
        content = problem_of(error).model_dump_json().encode()
        named = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n".encode()
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn says it is never None
        if cycle is None or cycle.response_complete or not cycle.response_started:  # not in the middle of an answer
            self.transport.write(b"".join([STATUS_LINE[error.status], named, *headers, b"\r\n", content]))
        self.transport.close()
