"""A collector of OpenTelemetry spans on loopback, since no real one can be had here: it speaks OTLP over HTTP."""

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sent:
    """A span as it arrived."""

    service: str
    name: str
    trace: str
    parent: str
    attributes: dict[str, Any]


@contextmanager
def collector() -> Iterator[tuple[str, list[Sent]]]:
    """Listen; yield the endpoint and the spans that have arrived so far."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: PLC0415

    arrived: list[Sent] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                arrived.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", arrived
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(request: Any) -> Iterator[Sent]:
    for of_process in request.resource_spans:
        told = {entry.key: entry.value.string_value for entry in of_process.resource.attributes}
        for of_library in of_process.scope_spans:
            for span in of_library.spans:
                values = {entry.key: entry.value for entry in span.attributes}
                attributes = {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}
                yield Sent(told["service.name"], span.name, span.trace_id.hex(), span.parent_span_id.hex(), attributes)
