"""An app behind the real HTTP server, spoken to byte by byte, and what it had stored before."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy
import uvicorn

from gramfuse_server.database import reading
from gramfuse_server.serving import http_server
from gramfuse_server.tables import Row
from support.server_world import World


@dataclass(frozen=True)
class Answer:
    """What a connection said until it closed, or until a whole answer was there."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json", self
        document = json.loads(self.body)
        assert document["status"] == self.status
        return str(document["code"])


class Connection:
    """A connection of a caller that follows no rule."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, content: bytes) -> bool:
        """Send as much as goes; tell whether all of it did."""
        try:
            self._socket.sendall(content)
        except OSError:
            return False
        return True

    def drip(self, content: bytes, *, pause: float) -> float:
        """Send byte by byte until the other side hangs up or all is sent; return the seconds that it took."""
        began = time.monotonic()
        self._socket.settimeout(pause)
        for byte in content:
            if not self.send(bytes([byte])):
                break
            with contextlib.suppress(TimeoutError):
                if self._socket.recv(1, socket.MSG_PEEK) is not None:
                    break
        self._socket.settimeout(20)
        return time.monotonic() - began

    def answer(self) -> Answer | None:
        """Read one answer; None where the connection ends without."""
        content = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in content and (piece := self._socket.recv(65536)):
                content += piece
        head, found, body = content.partition(b"\r\n\r\n")
        if not found:
            return None
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        with contextlib.suppress(ConnectionError):
            while len(body) < int(headers.get("content-length", 0)) and (piece := self._socket.recv(65536)):
                body += piece
        return Answer(int(status.split()[1]), headers, body)

    def is_closed(self, within: float) -> bool:
        """Wait until the other side hangs up; False where it does not in time."""
        self._socket.settimeout(within)
        try:
            while self._socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True


@dataclass(frozen=True)
class Served:
    """A running server."""

    world: World
    server: uvicorn.Server
    port: int

    def connect(self) -> Connection:
        return Connection(self.port)

    def ask(self, request: bytes) -> Answer | None:
        """Send a request over a connection of its own."""
        with self.connect() as connection:
            connection.send(request)
            return connection.answer()


@contextlib.contextmanager
def serving(world: World) -> Iterator[Served]:
    """Serve the app of a world as `gramfuse-server serve` does."""
    server = http_server(world.app, world.services.settings)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Served(world, server, listening.getsockname()[1])
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def head(method: str, path: str, token: str | None = None, **headers: Any) -> bytes:
    """The head of a request."""
    fields = {"host": "server"} | ({"authorization": f"Bearer {token}"} if token else {})
    fields |= {name.replace("_", "-"): str(value) for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


def everything_stored(world: World) -> tuple[set[str], dict[str, list[Any]]]:
    """All keys of the blob store and all rows of the database."""
    with reading(world.services.database) as session:
        rows = {
            table.name: sorted(map(str, session.execute(sqlalchemy.select(table)).all()))
            for table in Row.metadata.sorted_tables
        }
    return world.stored_keys(), rows
