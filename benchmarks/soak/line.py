"""A line to the server that breaks: asked to by the run, or because the server was killed."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal

REQUEST_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.2
MAX_HEAD_BYTES: Final = 64 * 1024

Fault = Literal["cut", "unheard"]
"""The connection is cut in the middle of the body; or behind it, so that the answer is not heard."""


class BrokenLineError(Exception):
    """No whole answer came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def document(self) -> Any:  # noqa: ANN401 - any JSON value
        """Its JSON."""
        return json.loads(self.content)


@dataclass(slots=True)
class Line:
    """Requests to one port, each on a connection of its own; `counts` says what became of them."""

    port: int
    until: float
    """When nobody tries again any more, by the monotonic clock."""
    counts: Counter[str] = field(default_factory=Counter)

    async def ask(
        self,
        method: str,
        path: str,
        token: str,
        body: bytes | Mapping[str, Any] | list[Any] = b"",
        headers: Mapping[str, str] | None = None,
        *,
        fault: Fault | None = None,
    ) -> Answer:
        """Send a request until it is answered by anything but a server that is not there, or not well.

        Raises:
            TimeoutError: nothing of the kind came until the run's end.
        """
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **(headers or {})}
        while True:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    answer = await self._exchange(method, path, fields, content, fault)
            except (OSError, EOFError, BrokenLineError, asyncio.LimitOverrunError, TimeoutError):
                self.counts["broken"] += 1
            else:
                if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return answer
                self.counts[str(answer.status)] += 1
                if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                    self.counts[f"{method} {path.partition('?')[0].rpartition('/')[0]}: {answer.content[:200]!r}"] += 1
            fault = None
            if time.monotonic() > self.until:
                msg = f"{method} {path} was not answered until the run's end"
                raise TimeoutError(msg)
            await asyncio.sleep(PAUSE_SECONDS)

    async def read(self, path: str, token: str) -> Any:  # noqa: ANN401 - any JSON value
        """GET a JSON document that has to be there."""
        answer = await self.ask("GET", path, token)
        require(answer, HTTPStatus.OK, what=path)
        return answer.document

    async def read_all(self, path: str, token: str) -> list[Any]:
        """GET every item of a list."""
        items: list[Any] = []
        cursor = ""
        while True:
            page = await self.read(f"{path}{'&' if '?' in path else '?'}limit=200{cursor}", token)
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            cursor = f"&cursor={page['next_cursor']}"

    async def _exchange(
        self, method: str, path: str, fields: Mapping[str, str], content: bytes, fault: Fault | None
    ) -> Answer:
        self.counts["requests"] += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=MAX_HEAD_BYTES)
        try:
            head = {"Host": "127.0.0.1", "Content-Length": str(len(content)), "Connection": "close", **fields}
            lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            writer.write(content[: len(content) // 2] if fault == "cut" else content)
            await writer.drain()
            if fault is not None:
                self.counts["dropped"] += 1
                await asyncio.sleep(0.01)  # so that what was sent arrives
                writer.transport.abort()
                raise BrokenLineError
            return await _read_answer(reader)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def require(answer: Answer, *statuses: int, what: str) -> Answer:
    """Require one of these statuses.

    Raises:
        AssertionError: it is another; the harness and the server disagree about the contract.
    """
    if answer.status not in statuses:
        msg = f"{what}: {answer.status} {answer.content[:500]!r}"
        raise AssertionError(msg)
    return answer


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if "content-length" not in headers:
        raise BrokenLineError
    return Answer(status, headers, await reader.readexactly(int(headers["content-length"])))
