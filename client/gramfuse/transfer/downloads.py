"""Fetch files into a folder that appears only when all of them are there and verified."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from gramfuse.progress import ByteCount, OnProgress
from gramfuse.transfer.retrying import PATIENT, RetryRule, is_retryable
from gramfuse.transfer.transport import Transport
from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.digest import sha256_hex_of_chunks
from gramfuse_shared.errors import ConflictError, DigestMismatchError, FileUnwritableError, TransportError

PARTIAL_SUFFIX: Final = ".partial"
_BLOCK_BYTES: Final = limits.MIB
_BLOCKS_AHEAD: Final = 4
_BLOCKS_PER_SYNC: Final = 32


def pull_folder(
    transport: Transport,
    location: str,
    entries: Sequence[FileEntry],
    folder: Path,
    *,
    finish: Callable[[Path], None] = lambda _: None,
    on_progress: OnProgress | None = None,
    retry: RetryRule | None = None,
) -> None:
    """Download files into `<folder>.partial`, verify them, let `finish` verify the whole, then rename it to `folder`.

    A rerun keeps finished files and resumes the begun one by Range. Bytes that do not have their digest are removed
    and reported; they never reach `folder`.

    Args:
        transport: the connection.
        location: path under which the files lie, each at `<location>/<name>`.
        entries: names, lengths and digests.
        folder: where the files shall lie; it must not exist, or be empty.
        finish: called with the complete partial folder before it is renamed; what it raises keeps the folder away.
        on_progress: told the bytes that are here, those of earlier runs included.
        retry: how often a broken stream is resumed within this call.

    Raises:
        ConflictError: `folder` exists and holds something.
        DigestMismatchError: a file's bytes are not the announced ones.
        TransportError: the server could not be reached, or the stream broke too often.
        FileUnwritableError: the disk refuses.
    """
    require_new(folder)
    partial = partial_folder(folder)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        present = sum(_present_bytes(partial, entry) for entry in entries)
        count = ByteCount("download", sum(entry.bytes for entry in entries), on_progress, done_bytes=present)
        for entry in entries:
            _fetch(transport, f"{location}/{entry.name}", entry, partial, count, retry or PATIENT)
        _remove_spare(partial, {entry.name for entry in entries})
        finish(partial)
        _publish(partial, folder)
    except OSError as error:
        msg = f"{error.filename or folder} cannot be written: {error.strerror}"
        raise FileUnwritableError(msg) from error


def partial_folder(folder: Path) -> Path:
    """Return the folder beside `folder` in which a download grows."""
    return folder.with_name(folder.name + PARTIAL_SUFFIX)


def require_new(folder: Path) -> None:
    """Require that a download may become `folder`.

    Raises:
        ConflictError: it exists and holds something.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        msg = f"{folder} exists and is not an empty folder; choose another, or remove it"
        raise ConflictError(msg)


def is_intact(folder: Path, entry: FileEntry) -> bool:
    """Tell whether a folder holds a file with the announced bytes."""
    path = folder / entry.name
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_hex_of_chunks(_blocks(path)) == entry.sha256


def _fetch(
    transport: Transport, path: str, entry: FileEntry, partial: Path, count: ByteCount, retry: RetryRule
) -> None:
    """Fetch one file, resuming a broken stream; rename it within the partial folder once its digest is right."""
    target, growing = partial / entry.name, _growing(partial, entry)
    if target.exists():
        return
    failures = 0
    arrived = _Arrived(growing)
    while arrived.length < entry.bytes:
        before = arrived.length
        try:
            _append(transport, path, entry, arrived, count)
        except TransportError as error:
            failures = 1 if arrived.length > before else failures + 1  # a stream that moves on may break often
            if failures >= retry.attempts or not is_retryable(error):
                raise
    found = arrived.digest.hexdigest()
    if found != entry.sha256:
        growing.unlink()
        msg = (
            f"{entry.name}: the bytes that arrived have SHA-256 {found}, not {entry.sha256}; they were removed, "
            "run the command again to fetch them anew"
        )
        raise DigestMismatchError(msg, file=entry.name, expected=entry.sha256, found=found)
    growing.replace(target)


class _Arrived:
    """What has arrived of a file: its bytes on disk, their number and their SHA-256, always of the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0
        self.digest = hashlib.sha256()
        if path.exists():
            for block in _blocks(path):  # an earlier run's; the disk may have changed them since
                self._count(block)

    @contextmanager
    def appending(self, start: int) -> Iterator[Callable[[bytes], None]]:
        """Give what appends a piece from byte `start` on: it is hashed and written in a thread beside the caller.

        On leaving, whatever the reason, all pieces that were given are on disk.
        """
        if start != self.length:  # the server begins anew
            self.length, self.digest = 0, hashlib.sha256()
        with (
            self.path.open("r+b" if start else "wb", buffering=0) as stream,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="gramfuse-keep") as beside,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="gramfuse-sync") as disk,
        ):
            stream.seek(start)
            stream.truncate()
            keeping = deque[Future[None]]()
            syncing: list[Future[None]] = []
            pieces: list[bytes] = []
            waiting = blocks = 0

            def keep() -> None:
                nonlocal pieces, waiting, blocks
                if len(keeping) == _BLOCKS_AHEAD:
                    keeping.popleft().result()  # a slow disk slows the stream down: memory is bounded
                keeping.append(beside.submit(self._keep, stream, pieces))
                pieces, waiting, blocks = [], 0, blocks + 1
                if blocks % _BLOCKS_PER_SYNC == 0:  # so that the last sync, for which everybody waits, finds little
                    syncing.append(disk.submit(os.fsync, stream.fileno()))

            def append(piece: bytes) -> None:
                nonlocal waiting
                pieces.append(piece)
                waiting += len(piece)
                if waiting >= _BLOCK_BYTES:
                    keep()

            try:
                yield append
            finally:
                keep()
                for done in (*keeping, *syncing):
                    done.result()
                os.fsync(stream.fileno())

    def _keep(self, stream: BinaryIO, pieces: list[bytes]) -> None:
        block = b"".join(pieces)  # one long call without the interpreter's lock, not many short ones
        if stream.tell() != self.length:
            return  # the disk refused the block before: what is there stays a beginning of the file
        rest = memoryview(block)
        while rest:
            rest = rest[stream.write(rest) :]
        self._count(block)

    def _count(self, block: bytes) -> None:
        self.digest.update(block)
        self.length += len(block)


def _append(transport: Transport, path: str, entry: FileEntry, arrived: _Arrived, count: ByteCount) -> None:
    start = arrived.length
    with transport.download(path, start=start, etag=entry.sha256) as download:
        position = download.start
        count.add(position - start)  # less than nothing where the server begins anew
        with arrived.appending(position) as append:
            for chunk in download.chunks:
                position += len(chunk)
                if position > entry.bytes:
                    msg = f"{entry.name}: the server sends more than the announced {entry.bytes} bytes"
                    raise DigestMismatchError(msg, file=entry.name)
                append(chunk)
                count.add(len(chunk))
    if position < entry.bytes:
        msg = f"{entry.name}: the stream ended after {position} of {entry.bytes} bytes"
        raise TransportError(msg)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _present_bytes(partial: Path, entry: FileEntry) -> int:
    """Return the bytes of a file that are here; what is too long or wrong is removed, so that it is fetched anew."""
    target, growing = partial / entry.name, _growing(partial, entry)
    if target.exists():
        if is_intact(partial, entry):
            return entry.bytes
        target.unlink()
    if _length(growing) > entry.bytes:
        growing.unlink()
    return _length(growing)


def _growing(partial: Path, entry: FileEntry) -> Path:
    """Return the path at which a file grows; the digest in it keeps another version's bytes apart."""
    return partial / f"{entry.sha256[:16]}.part"


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove_spare(partial: Path, names: set[str]) -> None:
    """Remove what an earlier, other download left in the partial folder."""
    for path in partial.iterdir():
        if path.name not in names:
            path.unlink()


def _publish(partial: Path, folder: Path) -> None:
    """Rename the complete folder; nothing half-written is ever visible."""
    if folder.exists():
        folder.rmdir()  # it is empty: require_new saw to it
    partial.rename(folder)
