"""Send the parts that the server does not have yet, several at once."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final

from gramfuse.contributing.virtual_files import VirtualFile
from gramfuse.progress import ByteCount, OnProgress
from gramfuse.transfer.transport import Transport
from gramfuse_shared.contract.http_api import FileUpload, PartList
from gramfuse_shared.errors import ConflictError, DigestMismatchError

DEFAULT_PARALLEL_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class PartToSend:
    """The bytes [start, end) of a file, under their number."""

    file: VirtualFile
    path: str
    start: int
    end: int


def send_missing_parts(
    transport: Transport,
    collection: str,
    files: Sequence[VirtualFile],
    announced: Sequence[FileUpload],
    *,
    parallel: int = DEFAULT_PARALLEL_PARTS,
    on_progress: OnProgress | None = None,
) -> int:
    """Ask which parts of each file exist and send the others; return how many were sent.

    Args:
        transport: the connection.
        collection: path of the upload; its files lie at `<collection>/files/<name>`.
        files: what is to be sent.
        announced: the server's part size and count per file.
        parallel: parts on the way at once.
        on_progress: told the bytes that the server has, those of earlier runs included.

    Raises:
        GramfuseError: what the server answers; parts that arrived stay there, and the same call sends the rest.
    """
    plans = {upload.name: upload for upload in announced}
    missing: list[PartToSend] = []
    for file in files:
        upload = plans.get(file.name)
        if upload is None or upload.bytes != file.length:
            msg = f"the server does not expect {file.name} of {file.length} bytes in this upload"
            raise ConflictError(msg)
        missing += _missing_parts(transport, collection, file, upload)
    total = sum(file.length for file in files)
    present = total - sum(part.end - part.start for part in missing)
    count = ByteCount("upload", total, on_progress, done_bytes=present)
    _send_all(transport, missing, parallel, count)
    return len(missing)


def _missing_parts(
    transport: Transport, collection: str, file: VirtualFile, upload: FileUpload
) -> Iterator[PartToSend]:
    path = f"{collection}/files/{file.name}/parts"
    arrived: Mapping[int, str] = {}
    if upload.received_parts:
        arrived = {part.number: part.sha256 for part in PartList.parse(transport.call("GET", path)).parts}
    for number in range(upload.part_count):
        start = number * upload.part_bytes
        part = PartToSend(file, f"{path}/{number}", start, min(start + upload.part_bytes, file.length))
        if number not in arrived:
            yield part


def _send_all(transport: Transport, parts: Sequence[PartToSend], parallel: int, count: ByteCount) -> None:
    """Send all parts; after the first failure begin no other, and let those on the way arrive."""
    failed = threading.Event()

    def send(part: PartToSend) -> None:
        if failed.is_set():
            return
        try:
            _send(transport, part, count)
        except BaseException:
            failed.set()
            raise

    pool = ThreadPoolExecutor(max_workers=max(parallel, 1), thread_name_prefix="gramfuse-part")
    try:
        for future in as_completed([pool.submit(send, part) for part in parts]):
            future.result()
    except KeyboardInterrupt:
        transport.stop()  # those on the way end too
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _send(transport: Transport, part: PartToSend, count: ByteCount) -> None:
    digest = part.file.part_digest(part.start, part.end)
    attempts: list[int] = []  # bytes counted in each attempt; those of a failed one are taken back

    def chunks() -> Iterator[bytes]:
        if attempts:
            count.add(-attempts[-1])
        attempts.append(0)
        for chunk in part.file.chunks(part.start, part.end):
            transport.require_running()
            yield chunk
            attempts[-1] += len(chunk)
            count.add(len(chunk))

    try:
        transport.upload(part.path, chunks, length=part.end - part.start, digest=digest)
        count.add(part.end - part.start - (attempts[-1] if attempts else 0))  # what the store had already
    except DigestMismatchError as error:
        msg = f"{part.file.name}: bytes were damaged on the way, or its source changed while being sent"
        raise DigestMismatchError(msg, **error.facts) from error
