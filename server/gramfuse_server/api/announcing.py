"""Parts that are put into the object store directly: announced before and behind, and looked at before they count."""

from typing import Any, Final

from anyio import to_thread
from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from obstore.exceptions import BaseError

from gramfuse_server.api.context import Services, declares
from gramfuse_server.api.uploads import FindUpload, record_slot
from gramfuse_server.auth import Caller
from gramfuse_server.database import transaction
from gramfuse_server.direct import DirectTransfers, Found
from gramfuse_server.intake.offers import offer
from gramfuse_server.intake.parts import Slot, find_slot, has_arrived
from gramfuse_shared.contract.http_api import AnnouncedPart, DirectRequest, PartAnnouncement
from gramfuse_shared.errors import ConflictError, NotFoundError, PartOutOfRangeError, StateError, UnavailableError

ANNOUNCED_RESPONSES: Final[dict[int | str, dict[str, Any]]] = declares(
    ConflictError, StateError, PartOutOfRangeError
) | {
    200: {"model": AnnouncedPart, "description": "The part had arrived already"},
    201: {"model": AnnouncedPart, "description": "The part was put as announced, and has arrived"},
}


async def announce_part(
    response: Response,
    services: Services,
    caller: Caller,
    announced: PartAnnouncement,
    *,
    file: str,
    number: int,
    find_upload: FindUpload,
) -> AnnouncedPart:
    """Answer where a part is to be put; once its bytes are there, note it. Everything is checked as of a sent part.

    Raises:
        NotFoundError: parts are sent to this server itself.
        UnavailableError: the store does not answer.
        GramfuseError: see `find_slot`, `offer` and `record_part`.
    """
    direct = services.direct
    if direct is None:
        msg = "this server takes parts itself: PUT the part's bytes here"
        raise NotFoundError(msg)

    def offered() -> tuple[Slot, bool, bool]:
        now = services.clock()
        with transaction(services.database) as session:
            upload = find_upload(session, caller)
            slot = find_slot(
                session, upload, file=file, number=number, length=announced.bytes, sha256=announced.sha256, now=now
            )
            arrived = has_arrived(session, slot)
            return slot, arrived, not arrived and offer(session, slot, now)

    slot, arrived, new = await run_in_threadpool(offered)
    if arrived:
        response.status_code = 200
        return _document(slot)
    found = "nothing" if new else await _look(services, direct, slot)
    if found == "these bytes":
        first = await run_in_threadpool(record_slot, services, slot)
        if first:
            services.metrics.part_put(slot.bytes)
        response.status_code = 201 if first else 200
        return _document(slot)
    response.status_code = 202
    replace = found == "other bytes"
    put = direct.put(slot.key, length=slot.bytes, sha256=slot.sha256, now=services.clock(), replace=replace)
    return _document(slot, put)


async def _look(services: Services, direct: DirectTransfers, slot: Slot) -> Found:
    """Ask the store, in a thread of those that parts have: a slow store holds up no other request."""

    def look() -> Found:
        try:
            return direct.look(slot.key, length=slot.bytes, sha256=slot.sha256)
        except (BaseError, OSError) as error:
            msg = f"part {slot.number} of {slot.file} cannot be looked at in the object store at present"
            raise UnavailableError(msg) from error

    return await to_thread.run_sync(look, limiter=services.part_buffers.threads)


def _document(slot: Slot, put: DirectRequest | None = None) -> AnnouncedPart:
    return AnnouncedPart(number=slot.number, bytes=slot.bytes, sha256=slot.sha256, put=put)
