"""A reverse proxy between client and API that sees, counts, and disturbs what travels."""

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host"})
BLOCK_BYTES = 64 * 1024


@dataclass
class Exchange:
    """A request, and how many bytes of an answer went back so far."""

    method: str
    path: str
    range: str | None
    status: int | None = None
    answered_bytes: int = 0


@dataclass
class Wire:
    """What travelled, and what to do to it. Both hooks run in the exchange's own thread."""

    port: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    before_request: Callable[[Exchange], None] = lambda _: None
    change_answer: Callable[[Exchange, bytes], bytes] = lambda _, block: block

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, method: str, part_of_path: str) -> list[Exchange]:
        """The exchanges so far of a method whose path holds these characters."""
        return [e for e in self.exchanges if e.method == method and part_of_path in e.path]

    def forget(self) -> None:
        """Begin anew: no exchanges, no disturbance."""
        self.exchanges.clear()
        self.before_request = lambda _: None
        self.change_answer = lambda _, block: block


@contextlib.contextmanager
def wire_to(upstream_port: Callable[[], int]) -> Iterator[Wire]:
    """Run the proxy; `upstream_port` is asked at each request, because the API may have been restarted."""
    wire = Wire()

    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            exchange = Exchange(self.command, self.path, self.headers.get("Range"))
            wire.exchanges.append(exchange)
            wire.before_request(exchange)
            self.close_connection = True  # one request a connection: no half-used one is ever left behind
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", upstream_port(), timeout=60)) as upstream:
                try:
                    upstream.request(self.command, self.path, body, headers)
                    response = upstream.getresponse()
                except OSError:
                    return  # the API is gone: the client sees a broken connection
                exchange.status = response.status
                self.send_response_only(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                with contextlib.suppress(OSError, http.client.HTTPException):  # either side may vanish
                    while block := response.read1(BLOCK_BYTES):
                        self.wfile.write(wire.change_answer(exchange, block))
                        self.wfile.flush()
                        exchange.answered_bytes += len(block)

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Forward, f"do_{method}", Forward.forward)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    server.daemon_threads = True
    wire.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield wire
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
