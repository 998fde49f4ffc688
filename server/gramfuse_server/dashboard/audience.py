"""What one kind of visitor finds, by address; an address that is not theirs does not exist for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.forms import Act
from gramfuse_server.dashboard.sources import Sources

Read = Callable[[Sources, Request, Caller], Mapping[str, Any]]
"""Reads what a page shows."""

Send = Callable[[Sources, Request, Caller], Response]
"""Answers with something else than a page: a file, a document."""


@dataclass(frozen=True, slots=True)
class View:
    """A template and what it shows."""

    template: str
    read: Read


@dataclass(frozen=True, slots=True)
class Audience:
    """Pages, answers that are no pages, and acts that forms ask for, each by its address."""

    pages: Mapping[str, View]
    answers: Mapping[str, Send]
    acts: Mapping[str, Act]
