"""Logs as a server's process writes them, read by a test."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import structlog

from gramfuse_server.logs import configure_logs
from gramfuse_server.settings import Settings


@contextlib.contextmanager
def logs(
    form: Literal["json", "console"] = "json", *, level: Literal["debug", "info"] = "info"
) -> Iterator[io.StringIO]:
    """Configure the logs within as a server does, but to a text that is yielded."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level_before, written = root.handlers, root.level, io.StringIO()
    with contextlib.redirect_stderr(written):
        configure_logs(Settings(server_home=Path("/nowhere"), log_format=form, log_level=level))
    try:
        yield written
    finally:
        root.handlers, root.level = handlers, level_before
        structlog.configure(**before)


def parsed(text: str) -> list[dict[str, Any]]:
    """The lines of a log in JSON; every one of them has to be."""
    return [json.loads(line) for line in text.splitlines()]
