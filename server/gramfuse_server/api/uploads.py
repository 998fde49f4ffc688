"""Parts and seals over HTTP: one mechanism for base models, contributions and answers."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect

from gramfuse_server.api.context import TOKEN_REQUIRED, Services, audit, caller_of, declares
from gramfuse_server.auth import Caller
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake import parts, sealing
from gramfuse_server.intake.parts import PartedFile, Slot, receive, record_part
from gramfuse_server.intake.uploads import lock_upload, require_open
from gramfuse_server.tables import UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Part
from gramfuse_shared.digest import parse_content_digest
from gramfuse_shared.errors import (
    ConflictError,
    DigestMismatchError,
    GramfuseError,
    LengthRequiredError,
    PartOutOfRangeError,
    RequestMalformedError,
    StateError,
)

PartPath = Annotated[int, Path(ge=0, lt=limits.MAX_PARTS_PER_FILE, description="numbered from 0")]

PART_RESPONSES: Final = declares(
    LengthRequiredError, ConflictError, StateError, DigestMismatchError, PartOutOfRangeError
) | {200: {"model": Part, "description": "The same part had arrived already"}}
_CLOSED: Final = frozenset({"sealed", "accepted", "rejected"})
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


FindUpload = Callable[[Session, Caller], UploadRow]
"""Finds the upload that a request is about, if it exists for the caller and the caller may send to it."""


async def receive_part(
    request: Request, response: Response, services: Services, *, file: str, number: int, find_upload: FindUpload
) -> Part:
    """Send a part of a file of an upload. Refused before its body is read, if it can be."""
    caller = caller_of(request)

    def find_slot() -> Slot:
        with reading(services.database) as session:
            upload = find_upload(session, caller)
            length, sha256 = announced_part(request)
            return parts.find_slot(
                session, upload, file=file, number=number, length=length, sha256=sha256, now=services.clock()
            )

    slot = await run_in_threadpool(find_slot)
    return await _store_part(request, response, services, slot, owner=caller.require_organization())


@dataclass(frozen=True, slots=True)
class SealNotes:
    """How the audit log tells a seal: `<kind>.seal` or `<kind>.reject` of a subject, with details of each."""

    kind: str
    subject: str
    sealed: Mapping[str, Any] = field(default_factory=dict)
    rejected: Mapping[str, Any] = field(default_factory=dict)


def seal_upload(
    services: Services,
    caller: Caller,
    upload_id: str,
    notes: SealNotes,
    check: Callable[[Mapping[str, PartedFile]], None],
) -> None:
    """Close an upload and hand it to a worker; one that is closed already stays as it is.

    Raises:
        StateError, PartsMissingError: it is not open, or not complete.
        GramfuseError: what `check` says of its files; unless that is the store's fault, the upload is rejected.
    """
    now = services.clock()
    with reading(services.database) as session:
        upload = session.get_one(UploadRow, upload_id)
        if upload.state in _CLOSED:
            return
        require_open(upload, now)
        files = sealing.complete_files(session, services.blobs, upload)
    try:
        check(files)
    except GramfuseError as error:
        if not error.retryable:  # else it is the store's fault, not the file's
            _reject(services, caller, upload_id, notes, error)
        raise
    with transaction(services.database) as session:
        upload = lock_upload(session, upload_id)
        if upload.state == "open":
            sealing.seal(session, upload, queue=services.jobs, now=now)
            details = {**notes.sealed, "bytes": upload.bytes}
            audit(session, services, caller, f"{notes.kind}.seal", notes.subject, details)


def _reject(services: Services, caller: Caller, upload_id: str, notes: SealNotes, error: GramfuseError) -> None:
    now = services.clock()
    with transaction(services.database) as session:
        upload = lock_upload(session, upload_id)
        if upload.state != "open":
            return
        sealing.reject(upload, error.message, now)
        details = {**notes.rejected, "code": error.code}
        audit(session, services, caller, f"{notes.kind}.reject", notes.subject, details)
    discard_parts(services, upload_id)


async def _store_part(request: Request, response: Response, services: Services, slot: Slot, *, owner: str) -> Part:
    """Receive the body of a part that has a right to come, store it, and note it.

    Nothing is stored unless the bytes are the announced ones; nothing is noted unless they are stored.
    """
    async with services.part_buffers.take(slot.bytes, owner=owner) as content:
        try:
            await receive(request.stream(), slot, content, within=services.settings.part_timeout)
        except ClientDisconnect as error:
            msg = f"the connection ended before part {slot.number} of {slot.file} had arrived; send it again"
            raise PartOutOfRangeError(msg) from error
        await to_thread.run_sync(services.blobs.put, slot.key, content, limiter=services.part_buffers.threads)
    new = await run_in_threadpool(record_slot, services, slot)
    if new:
        services.metrics.part_kept(slot.bytes)
    response.status_code = 201 if new else 200
    return Part(number=slot.number, bytes=slot.bytes, sha256=slot.sha256)


def record_slot(services: Services, slot: Slot) -> bool:
    """Note that a part's bytes are stored; tell whether it is new.

    Raises:
        StateError, ConflictError: the upload was closed meanwhile, or the part came with other bytes; it is deleted.
    """
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
