"""What pages read from and act on, and how an address is read."""

import re
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from gramfuse_server.auth import Caller
from gramfuse_server.blobs import Blobs
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database
from gramfuse_server.jobs import JobQueue
from gramfuse_server.listing import MAX_CURSOR_CHARACTERS, PageRequest
from gramfuse_server.settings import Settings
from gramfuse_shared.errors import NotFoundError, RequestMalformedError
from gramfuse_shared.identifiers import DIGEST_PATTERN, FILE_PATTERN, JOB_PATTERN, PROJECT_PATTERN, SLUG_PATTERN

_ID_OF_TOKEN: Final = r"^[0-9a-f]{16}$"  # noqa: S105 - a form, no secret

ROWS: Final = 50
"""Of a list that has a page of its own."""


class SendFile(Protocol):
    """Answers a file of a model as the API does: its rules, its headers, its row in the audit log."""

    def __call__(self, caller: Caller, request: Request, *, project: str, model: str, file: str) -> Response:
        """Answer a request for a file; raises GramfuseError."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What pages read from and act on."""

    database: Database
    settings: Settings
    blobs: Blobs
    queue: JobQueue
    clock: Clock
    send_file: SendFile


def project_in(request: Request) -> str:
    """Return the project in a page's address; raises NotFoundError of what is no project's name."""
    return _named(request, "project", PROJECT_PATTERN)


def job_in(request: Request) -> str:
    """Return the job, or the model that it made, in a page's address; raises NotFoundError of what is no such name."""
    return _named(request, "job", JOB_PATTERN)


def contribution_in(request: Request) -> str:
    """Return the contribution in a page's address; raises NotFoundError of what is no digest."""
    return _named(request, "contribution", DIGEST_PATTERN)


def request_in(request: Request) -> str:
    """Return the request in a page's address; raises NotFoundError of what is no such name."""
    return _named(request, "request", JOB_PATTERN)


def file_in(request: Request) -> str:
    """Return the file's name in an address; raises NotFoundError of what is none."""
    return _named(request, "file", FILE_PATTERN)


def organization_in(request: Request) -> str:
    """Return the organization in a page's address; raises NotFoundError of what is no such name."""
    return _named(request, "organization", SLUG_PATTERN)


def token_in(request: Request) -> str:
    """Return the token's id in a page's address; raises NotFoundError of what is none."""
    return _named(request, "token", _ID_OF_TOKEN)


def part_asked(request: Request) -> PageRequest:
    """Read which part of a list is asked for; raises RequestMalformedError."""
    cursor = request.query_params.get("cursor") or None
    if cursor is not None and len(cursor) > MAX_CURSOR_CHARACTERS:
        msg = "the cursor is not one that this list gave; start without one"
        raise RequestMalformedError(msg)
    return PageRequest(limit=ROWS, cursor=cursor)


def _named(request: Request, kind: str, pattern: str) -> str:
    name = str(request.path_params[kind])
    if re.fullmatch(pattern, name) is None or not name.isprintable():
        msg = f"there is no {kind} of that name"
        raise NotFoundError(msg)
    return name
