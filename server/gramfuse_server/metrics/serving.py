"""The port on which Prometheus finds a process's metrics: one of its own, never the API's, and off unless it is set."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from gramfuse_server.settings import Settings
from gramfuse_shared.errors import ConfigurationError

_log = structlog.get_logger(__name__)


def new_registry() -> CollectorRegistry:
    """Make a registry that tells of this process's memory, time and files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


@contextmanager
def serving_metrics(settings: Settings, registry: CollectorRegistry) -> Iterator[int | None]:
    """Serve a registry's metrics within, on the port that the settings name, if they do; yield the port.

    Raises:
        ConfigurationError: the port cannot be listened on.
    """
    if settings.metrics_port is None:
        yield None
        return
    place = f"{settings.metrics_host}:{settings.metrics_port}"
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        msg = f"cannot serve metrics on {place}: {error}; each process needs a port of its own (GRAMFUSE_METRICS_PORT)"
        raise ConfigurationError(msg) from error
    _log.info("serves metrics", host=settings.metrics_host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
