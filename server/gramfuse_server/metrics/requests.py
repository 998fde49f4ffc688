"""What the API counts: requests by route template, and the bytes of parts and files."""

from collections.abc import AsyncIterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.routing import Mount
from starlette.types import Scope

UNMATCHED: Final = "unmatched"
"""The route of requests that no route takes: their paths are the callers', without bound."""
ABORTED: Final = "aborted"
"""The status of a request whose caller went away before it was answered."""

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
"""Up to the minutes that a large download takes."""


def route_of(scope: Scope) -> str:
    """Return the template of the route that a request took, with the prefix it is mounted under.

    Args:
        scope: the request's, after the app has answered it.
    """
    route = scope.get("route")
    if route is None:
        return UNMATCHED
    prefix: str = scope.get("root_path", "")
    return f"{prefix}/{{path}}" if isinstance(route, Mount) else f"{prefix}{route.path}"


class RequestMetrics:
    """The counters of one API process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "gramfuse_http_requests",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "gramfuse_http_request_duration_seconds",
            "From a request's first byte to its answer's last one.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._received = Counter(
            "gramfuse_upload_received_bytes", "Bytes of parts that arrived whole and are kept.", registry=registry
        )
        self._put = Counter(
            "gramfuse_upload_direct_bytes",
            "Bytes of parts that were put into the object store directly.",
            registry=registry,
        )
        self._located = Counter(
            "gramfuse_download_direct_bytes", "Bytes that clients were sent to the object store for.", registry=registry
        )
        self._sent = Counter("gramfuse_download_sent_bytes", "Bytes of files that were sent.", registry=registry)

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; status 0 is none."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status) if status else ABORTED).inc()
        self._seconds.labels(method, route).observe(seconds)

    def part_kept(self, size: int) -> None:
        """Count the bytes of a part that was not there before."""
        self._received.inc(size)

    def part_put(self, size: int) -> None:
        """Count the bytes of a part that came past the API."""
        self._put.inc(size)

    def located(self, size: int) -> None:
        """Count bytes whose place in the store was told, fetched or not."""
        self._located.inc(size)

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass a file's bytes on and count them."""
        async for chunk in chunks:
            self._sent.inc(len(chunk))
            yield chunk
