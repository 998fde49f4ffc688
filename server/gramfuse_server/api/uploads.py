"""Parts over HTTP: one mechanism for base models and contributions."""

import re
from typing import Annotated, Any, Final

from fastapi import Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from gramfuse_server.api.context import TOKEN_REQUIRED, Services, declares
from gramfuse_server.database import transaction
from gramfuse_server.intake.parts import Slot, receive, record_part
from gramfuse_server.intake.uploads import lock_upload
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Part
from gramfuse_shared.digest import parse_content_digest
from gramfuse_shared.errors import (
    ConflictError,
    DigestMismatchError,
    LengthRequiredError,
    PartOutOfRangeError,
    RequestMalformedError,
    StateError,
)

PartPath = Annotated[int, Path(ge=0, lt=limits.MAX_PARTS_PER_FILE, description="numbered from 0")]

PART_RESPONSES: Final = declares(
    LengthRequiredError, ConflictError, StateError, DigestMismatchError, PartOutOfRangeError
) | {200: {"model": Part, "description": "The same part had arrived already"}}
_LENGTH: Final = re.compile(r"[0-9]{1,15}")

PART_BODY: Final[dict[str, Any]] = {
    "security": TOKEN_REQUIRED,
    "parameters": [
        {
            "name": "Content-Digest",
            "in": "header",
            "required": True,
            "description": "SHA-256 of the part (RFC 9530)",
            "schema": {"type": "string", "pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$"},
            "example": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
}


def announced_part(request: Request) -> tuple[int, str]:
    """Read what a request announces about its body: length and SHA-256.

    Raises:
        LengthRequiredError: no Content-Length.
        RequestMalformedError: one of the fields is missing or malformed.
    """
    length = request.headers.get("content-length")
    if length is None:
        msg = "a part announces its Content-Length, so that it can be refused before it is read"
        raise LengthRequiredError(msg)
    if _LENGTH.fullmatch(length) is None:
        msg = "Content-Length is not a number of bytes"
        raise RequestMalformedError(msg)
    digest = request.headers.get("content-digest")
    if digest is None:
        msg = "a part announces its SHA-256: 'Content-Digest: sha-256=:<base64>:'"
        raise RequestMalformedError(msg)
    return int(length), parse_content_digest(digest)


async def store_part(request: Request, response: Response, services: Services, slot: Slot) -> Part:
    """Receive the body of a part that has a right to come, store it, and note it.

    Nothing is stored unless the bytes are the announced ones; nothing is noted unless they are stored.
    """
    async with services.part_buffers.take(slot.bytes) as content:
        try:
            await receive(request.stream(), slot, content, within=services.settings.part_timeout)
        except ClientDisconnect as error:
            msg = f"the connection ended before part {slot.number} of {slot.file} had arrived; send it again"
            raise PartOutOfRangeError(msg) from error
        await run_in_threadpool(services.blobs.put, slot.key, content)
    new = await run_in_threadpool(_record, services, slot)
    response.status_code = 201 if new else 200
    return Part(number=slot.number, bytes=slot.bytes, sha256=slot.sha256)


def _record(services: Services, slot: Slot) -> bool:
    try:
        with transaction(services.database) as session:
            return record_part(session, slot, services.clock())
    except (StateError, ConflictError):
        # closed or taken by other bytes while these arrived: unless they are noted, nobody will ever ask for them
        services.blobs.delete(slot.key)
        raise


def discard_parts(services: Services, upload: str) -> None:
    """Delete the parts of an upload that can never be sealed."""
    services.blobs.delete_prefix(f"uploads/{upload}/")
    with transaction(services.database) as session:
        lock_upload(session, upload).deleted_at = services.clock()
