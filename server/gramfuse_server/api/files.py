"""Files as answers: one mechanism for base models and merged models, with ETag, Range, If-Range and HEAD."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from gramfuse_server.api.context import Services, audit, declares
from gramfuse_server.auth import Caller
from gramfuse_server.blobs import blob_key
from gramfuse_shared.contract.http_api import LOCATION_TYPE, FileLocation
from gramfuse_shared.errors import FileLostError, GramfuseError, RangeNotSatisfiableError

MEDIA_TYPE: Final = "application/octet-stream"
_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_BINARY: Final[dict[str, Any]] = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_LOCATION: Final[dict[str, Any]] = {LOCATION_TYPE: {"schema": FileLocation.model_json_schema()}}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A complete file in the blob store."""

    name: str
    bytes: int
    sha256: str


def declares_file(*errors: type[GramfuseError]) -> dict[int | str, dict[str, Any]]:
    """The responses of an operation that answers a file."""
    return declares(RangeNotSatisfiableError, FileLostError, *errors) | {
        200: {"description": "The whole file; its ETag is its SHA-256", "content": _BINARY["content"] | _LOCATION},
        206: {"description": "The range that was asked for", **_BINARY},
        304: {"description": "The file that If-None-Match names"},
    }


def audit_download(
    session: Session, services: Services, caller: Caller, request: Request, *, project: str, file: StoredFile
) -> None:
    """Note a download, with the range that was asked for; last in the transaction. HEAD takes nothing along.

    Of one that is told the file's place what is noted is that it was told, and may be fetched for some minutes.
    """
    if request.method == "HEAD":
        return
    details: dict[str, Any] = {
        "file": file.name,
        "sha256": file.sha256,
        "range": request.headers.get("range", "")[:100] or None,
    }
    if _wants_location(request, services):
        details["direct"] = True
    audit(session, services, caller, "file.download", project, details)


def file_response(request: Request, services: Services, file: StoredFile) -> Response:
    """Answer a file, a range of it, or where it lies. Call it in a thread, outside of a transaction: it asks the store.

    Raises:
        RangeNotSatisfiableError: the range begins behind the file's end.
        FileLostError: the store does not hold the file.
    """
    etag = f'"{file.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{file.name}"',
        "X-Content-Type-Options": "nosniff",
    }
    if _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    key = blob_key(file.sha256)
    found_bytes = services.blobs.size(key)
    if found_bytes != file.bytes:
        _log.error("a file is lost", file=file.name, blob=key, bytes=file.bytes, found=found_bytes)
        msg = (
            f"the server's blob store does not hold {file.name} as it was accepted; trying again does not help: its "
            "operator finds it by `gramfuse-server verify`"
        )
        raise FileLostError(msg)
    if_range = request.headers.get("if-range")
    asked = request.headers.get("range") if if_range in {None, etag} else None
    found = _parse_range(asked, file.bytes)
    start, end = found or (0, file.bytes)
    if services.direct is not None and _wants_location(request, services):
        services.metrics.located(end - start)
        location = FileLocation(
            bytes=file.bytes, sha256=file.sha256, get=services.direct.get(key, now=services.clock())
        )
        hidden = {"Cache-Control": "no-store", "Vary": "Accept", "ETag": etag}
        return Response(location.model_dump_json(), headers=hidden, media_type=LOCATION_TYPE)
    if found is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    headers["Content-Length"] = str(end - start)
    status = 200 if found is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=MEDIA_TYPE)
    body: AsyncIterator[bytes] = services.metrics.counted(services.blobs.stream(key, start, end))
    return StreamingResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def _wants_location(request: Request, services: Services) -> bool:
    return (
        services.direct is not None and request.method == "GET" and LOCATION_TYPE in request.headers.get("accept", "")
    )


def _names(field: str | None, etag: str) -> bool:
    return field is not None and (field.strip() == "*" or etag in (tag.strip() for tag in field.split(",")))


def _parse_range(field: str | None, size: int) -> tuple[int, int] | None:
    """Read `bytes=a-b`, `a-` or `-n` as [start, end); None, the whole file, for what is none of these (RFC 9110)."""
    match = _RANGE.fullmatch(field.replace(" ", "")) if field else None
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= end:
        msg = f"the range {field!r} lies outside of the file's {size} bytes"
        raise RangeNotSatisfiableError(msg, content_range=f"bytes */{size}")
    return start, end
