"""Logs: one line per event, JSON or for people, with the ids of its request or job. Never tokens, bodies or text."""

import logging
import re
import secrets
import sys
import time
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gramfuse_server.metrics.requests import RequestMetrics, route_of
from gramfuse_server.outages import EngineOutages
from gramfuse_server.settings import Settings

REQUEST_ID: Final = b"x-request-id"
_FORM: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_SECRETS: Final = (
    (re.compile(r"\b(gf_[0-9a-f]{16})_[0-9a-f]{64}"), r"\1_***"),
    (re.compile(r"(//[^\s/:@]*):[^\s/@]+@"), r"\1:***@"),
    (re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"'\\]+", re.IGNORECASE), r"\1***"),
)
"""Tokens, passwords within URLs, what signs a URL of an object store."""

_PROBES: Final = ("/healthz", "/readyz")
"""What machines ask every few seconds. That all is well they are told, and the log is not, unless at debug level."""

_log: Final = structlog.get_logger("gramfuse_server.requests")


def mask_secrets(line: str) -> str:
    """Take out of a line what has the form of a secret: messages of libraries and tracebacks are not ours to word."""
    for form, shown in _SECRETS:
        line = form.sub(shown, line)
    return line


def configure_logs(settings: Settings) -> None:
    """Write everything, the libraries' logs included, to standard error in one form."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # the other one prints variables, tokens included
        )
    )

    def render(logger: Any, name: str, event: Any) -> str:  # noqa: ANN401 - structlog's own types
        return mask_secrets(renderer(logger, name, event))

    errors: list[Any] = [structlog.processors.format_exc_info] if settings.log_format == "json" else []
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *errors, render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    logging.getLogger("dbos").filters = [EngineOutages()]
    for name in ("alembic", "botocore", "dbos", "httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RequestLog:
    """Gives every request an id, the client's if it sent one; logs and counts how it ended."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Log method, path, route, status, duration; not the query, since cursors and searches are the caller's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(REQUEST_ID, b"")
        request_id = sent if _FORM.fullmatch(sent) else secrets.token_hex(8).encode()
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, request_id)]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                seconds, method, route = time.perf_counter() - began, scope["method"], route_of(scope)
                self._metrics.answered(method=method, route=route, status=status, seconds=seconds)
                write = _log.debug if route in _PROBES and status == HTTPStatus.OK else _log.info
                write(
                    "request",
                    method=method,
                    path=scope["path"],
                    route=route,
                    status=status,
                    milliseconds=round(seconds * 1000, 1),
                )
