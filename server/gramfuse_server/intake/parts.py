"""Parts: refused before the body is read where possible, hashed while they arrive, stored only when they are right."""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from weakref import WeakValueDictionary

from anyio import CapacityLimiter
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs, part_key
from gramfuse_server.intake.uploads import lock_upload, require_open
from gramfuse_server.tables import UploadFileRow, UploadPartRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Part, PartList
from gramfuse_shared.errors import (
    ConflictError,
    DigestMismatchError,
    NotFoundError,
    PartOutOfRangeError,
    UnavailableError,
)

_HASHED_AT_ONCE: Final = 4 * limits.MIB
_KEPT_BUFFERS: Final = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """The right to send one part: where it belongs, and what it must be."""

    upload: str
    file: str
    number: int
    bytes: int
    sha256: str

    @property
    def key(self) -> str:
        """Where its bytes are stored; the name holds their digest, so other bytes never land there."""
        return part_key(self.upload, self.file, self.number, self.sha256)


def find_slot(
    session: Session, upload: UploadRow, *, file: str, number: int, length: int, sha256: str, now: datetime
) -> Slot:
    """Check everything about a part that can be known before its body.

    Raises:
        StateError: the upload is not open.
        NotFoundError: it has no such file.
        PartOutOfRangeError: the number or the length lies outside of the file.
        ConflictError: the part has arrived already, with other bytes.
    """
    require_open(upload, now)
    entry = find_file(session, upload, file)
    if not 0 <= number < entry.part_count:
        msg = f"{file} has parts 0 to {entry.part_count - 1}; {number} is not one of them"
        raise PartOutOfRangeError(msg, number=number, part_count=entry.part_count)
    expected = min(entry.part_bytes, entry.bytes - number * entry.part_bytes)
    if length != expected:
        msg = f"part {number} of {file} has {expected} bytes, {length} were announced"
        raise PartOutOfRangeError(msg, expected=expected, announced=length)
    slot = Slot(upload=upload.id, file=file, number=number, bytes=expected, sha256=sha256)
    has_arrived(session, slot)
    return slot


class PartBuffers:
    """Memory for the parts that arrive at the same time. When all is taken, the next part waits, unread.

    An owner has a share of it, and stands in the queue with no more than that: slow parts of one are not in the way of
    another's. `threads` are those that bring parts to the store, one for each: a store that is slow holds up parts, and
    no request that does not need it.
    """

    def __init__(self, count: int, share: int) -> None:
        self._free = asyncio.Semaphore(count)
        self._share = share
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._kept: list[bytearray] = []
        self.threads = CapacityLimiter(count)

    @asynccontextmanager
    async def take(self, size: int, *, owner: str) -> AsyncIterator[memoryview]:
        """Yield `size` bytes of memory, their content undefined. Some is kept: fresh pages cost as much as hashing."""
        own = self._shares.setdefault(owner, asyncio.Semaphore(self._share))
        async with own, self._free:
            buffer = self._kept.pop() if self._kept else bytearray()
            if len(buffer) < size:
                buffer = bytearray(size)
            try:
                yield memoryview(buffer)[:size]
            finally:
                if len(self._kept) < _KEPT_BUFFERS:
                    self._kept.append(buffer)


async def receive(body: AsyncIterable[bytes], slot: Slot, content: memoryview, *, within: timedelta) -> None:
    """Read a part's body into `content`, hashing in a thread while it arrives.

    Raises:
        PartOutOfRangeError: more or fewer bytes than announced.
        DigestMismatchError: other bytes than announced.
        UnavailableError: the body did not arrive in time.
    """
    digest = hashlib.sha256()
    filled = hashed = 0
    hashing: asyncio.Future[None] | None = None
    try:
        async with asyncio.timeout(within.total_seconds()):
            async for chunk in body:
                if filled + len(chunk) > slot.bytes:
                    msg = f"part {slot.number} of {slot.file} is longer than the {slot.bytes} bytes announced"
                    raise PartOutOfRangeError(msg)
                content[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
                if filled - hashed >= _HASHED_AT_ONCE:
                    if hashing is not None:
                        await hashing
                    piece = content[hashed:filled]
                    hashing = asyncio.get_running_loop().run_in_executor(None, digest.update, piece)
                    hashed = filled
    except TimeoutError as error:
        msg = f"part {slot.number} of {slot.file} did not arrive within {within.total_seconds():g} s; send it again"
        raise UnavailableError(msg) from error
    finally:
        if hashing is not None:
            await hashing  # the memory is given back next
    if filled != slot.bytes:
        msg = f"part {slot.number} of {slot.file} ended after {filled} of {slot.bytes} bytes"
        raise PartOutOfRangeError(msg)
    await asyncio.to_thread(digest.update, content[hashed:])
    if digest.hexdigest() != slot.sha256:
        msg = f"the bytes of part {slot.number} of {slot.file} do not have the announced SHA-256; send it again"
        raise DigestMismatchError(msg)


def record_part(session: Session, slot: Slot, now: datetime) -> bool:
    """Note that a part's bytes are stored; tell whether it is new.

    Raises:
        StateError: the upload was closed meanwhile.
        ConflictError: the part arrived meanwhile with other bytes.
    """
    upload = lock_upload(session, slot.upload)
    if has_arrived(session, slot):
        return False
    require_open(upload, now)
    session.add(
        UploadPartRow(
            upload=slot.upload,
            file=slot.file,
            number=slot.number,
            bytes=slot.bytes,
            sha256=slot.sha256,
            received_at=now,
        )
    )
    session.flush()
    return True


def find_file(session: Session, upload: UploadRow, file: str) -> UploadFileRow:
    """Return a file of an upload; raises NotFoundError."""
    entry = session.get(UploadFileRow, (upload.id, file))
    if entry is None:
        msg = f"the manifest announces no file {file}"
        raise NotFoundError(msg)
    return entry


def parts_of(session: Session, upload: UploadRow, file: str) -> PartList:
    """List the parts of a file that have arrived, by number."""
    entry = find_file(session, upload, file)
    rows = stored_parts(session, upload.id, file)
    return PartList(
        file=file,
        part_bytes=entry.part_bytes,
        part_count=entry.part_count,
        parts=tuple(Part(number=row.number, bytes=row.bytes, sha256=row.sha256) for row in rows),
    )


def stored_parts(session: Session, upload: str, file: str) -> Sequence[UploadPartRow]:
    """Return the parts of a file that have arrived, by number."""
    return session.scalars(
        select(UploadPartRow)
        .where(UploadPartRow.upload == upload, UploadPartRow.file == file)
        .order_by(UploadPartRow.number)
    ).all()


@dataclass(frozen=True, slots=True)
class PartedFile:
    """A file whose parts have all arrived, read as one. `keys` are the parts' in order."""

    blobs: Blobs
    size: int
    part_bytes: int
    keys: tuple[str, ...]

    def read(self, start: int, end: int) -> bytes:
        """Read the bytes [start, end), which may span parts; raises UnavailableError."""
        pieces = []
        end = min(end, self.size)
        while start < end:
            number, offset = divmod(start, self.part_bytes)
            length = min(end - start, self.part_bytes - offset)
            try:
                pieces.append(self.blobs.read(self.keys[number], offset, offset + length))
            except OSError as error:
                msg = f"part {number} cannot be read from the blob store at present"
                raise UnavailableError(msg) from error
            start += length
        return b"".join(pieces)


def parted_file(session: Session, blobs: Blobs, entry: UploadFileRow) -> PartedFile | None:
    """Return a file that can be read as one; None while parts are missing."""
    parts = stored_parts(session, entry.upload, entry.name)
    if len(parts) != entry.part_count:
        return None
    keys = tuple(part_key(part.upload, part.file, part.number, part.sha256) for part in parts)
    return PartedFile(blobs=blobs, size=entry.bytes, part_bytes=entry.part_bytes, keys=keys)


def has_arrived(session: Session, slot: Slot) -> bool:
    """Tell whether the part has arrived already; raises ConflictError if with other bytes."""
    row = session.get(UploadPartRow, (slot.upload, slot.file, slot.number))
    if row is not None and row.sha256 != slot.sha256:
        msg = f"part {slot.number} of {slot.file} has arrived already with other bytes; parts never change"
        raise ConflictError(msg)
    return row is not None
