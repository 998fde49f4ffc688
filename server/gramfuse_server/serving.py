"""How uvicorn serves the API, and how many connections this process can hold."""

import resource
import sys
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from gramfuse_server.connections import Connections
from gramfuse_server.settings import Settings

OTHER_FILES: Final = 256
"""Files that the process opens besides connections: database, blobs, logs."""
KEEP_ALIVE_SECONDS: Final = 60
"""Longer than clients keep an idle connection, so that they are the ones to close it."""

_log = structlog.get_logger(__name__)


def http_server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    """Configure the server; whoever runs it brings the socket."""
    connections = Connections(allow_connections(settings.connections), settings.head_timeout)
    configuration = uvicorn.Config(
        app,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=connections.protocol(),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(configuration)


def allow_connections(wanted: int) -> int:
    """Have the system allow as many connections as are wanted, or as near as it goes; return how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        most = max(allowed - OTHER_FILES, allowed // 2)
        _log.warning("fewer connections than set", connections=most, wanted=wanted, open_files=allowed)
        return most
    return wanted
