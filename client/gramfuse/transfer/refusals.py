"""What an answer means that is no success: the server's problem document, the object store's code."""

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import httpx

from gramfuse.transfer.responses import GATEWAY_STATUSES, read_bounded
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Problem
from gramfuse_shared.errors import (
    DigestMismatchError,
    DocumentMalformedError,
    GramfuseError,
    TooLargeError,
    TransportError,
    UnavailableError,
    error_class,
)

_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_DAMAGED: Final = frozenset({b"BadDigest", b"InvalidDigest", b"XAmzContentChecksumMismatch"})
_LATE: Final = frozenset({b"ExpiredToken", b"RequestTimeout"})


def raise_problem(response: httpx.Response) -> NoReturn:
    """Raise the class that the server named, with its facts; else what the status says."""
    content = read_bounded(response)
    announced = response.headers.get("Retry-After", "")
    waiting = {"retry_after_seconds": int(announced)} if announced.isdecimal() else {}
    try:
        problem = Problem.parse(content)
    except DocumentMalformedError:
        _raise_status(response, waiting)
    facts: dict[str, Any] = {**problem.facts, **waiting, "retryable": problem.retryable, "status": problem.status}
    if error_class(problem.code) is GramfuseError:
        facts["code"] = problem.code  # a newer server's, or a fault of the server's own
    raise error_class(problem.code)(problem.detail, **facts)


def _raise_status(response: httpx.Response, waiting: Mapping[str, int]) -> NoReturn:
    status = response.status_code
    where = f"{response.request.method} {response.request.url.path}"
    if status in GATEWAY_STATUSES:
        msg = f"the server is not ready: HTTP {status} to {where}"
        raise UnavailableError(msg, status=status, **waiting)
    msg = f"HTTP {status} to {where}, and not the answer of a gramfuse server; check the URL"
    raise TransportError(msg, status=status, retryable=False)


def raise_refusal(response: httpx.Response, peer: str) -> NoReturn:
    """Raise what a store's refusal means: sent damaged, come too late, too busy."""
    status = response.status_code
    try:
        found = _CODE.search(read_bounded(response, limits.MIB))
    except (TooLargeError, TransportError):
        found = None
    code = f" ({found[1].decode()})" if found else ""
    answer = f"{peer} answered HTTP {status}{code}"
    if found and found[1] in _DAMAGED:
        msg = f"{answer}: the bytes that arrived are not those that were announced"
        raise DigestMismatchError(msg, status=status)
    if status in GATEWAY_STATUSES or status in {httpx.codes.CONFLICT, httpx.codes.INTERNAL_SERVER_ERROR}:
        raise UnavailableError(answer, status=status)
    # an address that came too late is refused as a wrong one is: the next try asks for another
    late = status == httpx.codes.FORBIDDEN or bool(found and found[1] in _LATE)
    raise TransportError(answer, status=status, retryable=late)
