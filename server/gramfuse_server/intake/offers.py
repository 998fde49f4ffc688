"""Offers: a part that may be put into the store directly has one digest, so that it takes its own room and no more."""

from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from gramfuse_server.database import insert_if_absent
from gramfuse_server.intake.parts import Slot
from gramfuse_server.tables import PartOfferRow, UploadRow
from gramfuse_shared.errors import ConflictError


def offer(session: Session, slot: Slot, now: datetime) -> bool:
    """Note that these bytes may be put; tell whether that is new. While it is new nothing can lie there.

    Raises:
        ConflictError: other bytes may be put already.
    """
    place = {"upload": slot.upload, "file": slot.file, "number": slot.number}
    if insert_if_absent(session, PartOfferRow, {**place, "sha256": slot.sha256, "offered_at": now}):
        return True
    offered = session.get_one(PartOfferRow, tuple(place.values()), populate_existing=True).sha256
    if offered != slot.sha256:
        msg = (
            f"part {slot.number} of {slot.file} was announced with other bytes before, and parts never change; "
            "if these are right, send it through the server (GRAMFUSE_THROUGH_SERVER=1 at the client)"
        )
        raise ConflictError(msg)
    return False


def forget_offers(session: Session) -> None:
    """Forget what was offered of uploads that take no parts any more."""
    open_ones = select(UploadRow.id).where(UploadRow.state == "open")
    session.execute(delete(PartOfferRow).where(PartOfferRow.upload.not_in(open_ones)))
