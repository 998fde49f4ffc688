"""Files that are sent without being written: a few bytes of our own, then ranges of files that lie on disk."""

import bisect
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, Protocol

from gramfuse_shared.digest import sha256_hex_of_chunks
from gramfuse_shared.errors import FileUnreadableError
from gramfuse_shared.limits import MIB

CHUNK_BYTES: Final = MIB


class Readable(Protocol):
    """Where bytes come from, compared by value: a file on disk, or a tensor that is computed as it is read."""

    @property
    def path(self) -> Path:
        """What messages call it."""
        ...

    def open(self) -> BinaryIO:
        """Open it, if it is still what was planned; raises FileUnreadableError."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A file on disk as it was when it was planned; one that changes since is refused, not half sent."""

    path: Path
    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "Source":
        """Look at a file.

        Raises:
            FileUnreadableError: it is missing.
        """
        try:
            status = path.stat()
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise FileUnreadableError(msg) from error
        return cls(path, status.st_size, status.st_mtime_ns)

    def open(self) -> BinaryIO:
        """Open the file, if it is still the one that was planned.

        Raises:
            FileUnreadableError: it is gone or was changed.
        """
        try:
            stream = self.path.open("rb")
        except OSError as error:
            msg = f"{self.path} cannot be read: {error.strerror}"
            raise FileUnreadableError(msg) from error
        status = os.fstat(stream.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.bytes, self.modified_ns):
            stream.close()
            msg = f"{self.path} was changed while it was being sent; run the command again"
            raise FileUnreadableError(msg)
        return stream


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes [start, end) of a source."""

    source: Readable
    start: int
    end: int


class VirtualFile:
    """`header`, then `spans` one behind the other. Reading is safe from several threads at once."""

    def __init__(self, name: str, header: bytes, spans: Sequence[Span]) -> None:
        self.name = name
        self.header = header
        self._spans = _join_neighbours(spans)
        self._part_digests: dict[tuple[int, int], str] = {}  # by [start, end)
        self._ends = [len(header)]  # where the header ends, then each span
        for span in self._spans:
            self._ends.append(self._ends[-1] + span.end - span.start)

    @classmethod
    def of_path(cls, path: Path, name: str | None = None) -> "VirtualFile":
        """Present a file on disk as it is.

        Raises:
            FileUnreadableError: it is missing.
        """
        source = Source.of(path)
        return cls(name or path.name, b"", [Span(source, 0, source.bytes)])

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self._ends[-1]

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) in pieces of at most `CHUNK_BYTES`.

        Raises:
            FileUnreadableError: a source is gone, was changed, or ends early.
        """
        stop = self.length if end is None else end
        if start < len(self.header):
            yield self.header[start:stop]
        first = max(bisect.bisect_right(self._ends, start) - 1, 0)
        for number in range(first, len(self._spans)):
            offset, span = self._ends[number], self._spans[number]
            if offset >= stop:
                return
            begin = span.start + max(start - offset, 0)
            finish = min(span.end, span.start + stop - offset)
            yield from _read(span.source, begin, finish)

    def digest(
        self,
        on_bytes: Callable[[int], None] | None = None,
        *,
        part_bytes: int | None = None,
        see: Callable[[bytes], None] = lambda _: None,
    ) -> str:
        """Return the SHA-256 of the whole file, read once; `on_bytes` is told the length of each piece.

        `see` is shown each piece before it counts, and may raise.

        With `part_bytes`, the same reading takes the digests of parts of that size, for `part_digest`: beside the
        whole's, in a second thread, so that a sender does not have to hash before each part.
        """
        chunks = _seen(self.chunks(), see, on_bytes or (lambda _: None))
        if part_bytes is None or self.length <= part_bytes:
            whole = sha256_hex_of_chunks(chunks)
            self._part_digests = {(0, self.length): whole}
        else:
            whole, parts = _digest_with_parts(chunks, part_bytes)
            self._part_digests = {
                (start, min(start + part_bytes, self.length)): digest
                for start, digest in zip(range(0, self.length, part_bytes), parts, strict=True)
            }
        return whole

    def part_digest(self, start: int, end: int) -> str:
        """Return the SHA-256 of the bytes [start, end): the one that `digest` took, else they are read for it."""
        return self._part_digests.get((start, end)) or sha256_hex_of_chunks(self.chunks(start, end))


def digests_of_folder(
    folder: Path, *, recursively: bool = False, see: Mapping[Path, Callable[[bytes], None]] = MappingProxyType({})
) -> dict[str, str]:
    """Return the SHA-256 of a folder's files by their names; `recursively` also of those of folders in it.

    What `see` has for a file is shown its pieces.

    Raises:
        FileUnreadableError: one cannot be read.
    """
    try:
        found = sorted(entry for entry in (folder.rglob("*") if recursively else folder.iterdir()) if entry.is_file())
    except OSError as error:
        msg = f"{folder} cannot be read: {error.strerror}"
        raise FileUnreadableError(msg) from error
    return {
        str(file.relative_to(folder)): VirtualFile.of_path(file).digest(see=see.get(file, lambda _: None))
        for file in found
    }


def _digest_with_parts(chunks: Iterator[bytes], part_bytes: int) -> tuple[str, list[str]]:
    """Return the SHA-256 of a stream and of each `part_bytes` of it, the last one shorter."""
    whole, part, parts, filled = hashlib.sha256(), hashlib.sha256(), list[str](), 0

    def add(chunk: bytes) -> None:
        nonlocal part, filled
        rest = memoryview(chunk)
        while rest:
            piece, rest = rest[: part_bytes - filled], rest[part_bytes - filled :]
            part.update(piece)
            filled += len(piece)
            if filled == part_bytes:
                parts.append(part.hexdigest())
                part, filled = hashlib.sha256(), 0

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="gramfuse-digest") as beside:
        for chunk in chunks:
            adding = beside.submit(add, chunk)
            whole.update(chunk)
            adding.result()
    if filled:
        parts.append(part.hexdigest())
    return whole.hexdigest(), parts


def _seen(chunks: Iterator[bytes], see: Callable[[bytes], None], on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        see(chunk)
        yield chunk
        on_bytes(len(chunk))


def _read(source: Readable, start: int, end: int) -> Iterator[bytes]:
    with source.open() as stream:
        stream.seek(start)
        remaining = end - start
        while remaining:
            chunk = stream.read(min(CHUNK_BYTES, remaining))
            if not chunk:
                msg = f"{source.path} ends before byte {end}"
                raise FileUnreadableError(msg)
            remaining -= len(chunk)
            yield chunk


def _join_neighbours(spans: Sequence[Span]) -> list[Span]:
    """Join spans that follow each other in one file, and drop empty ones, so that a part opens few files."""
    joined: list[Span] = []
    for span in spans:
        if span.start == span.end:
            continue
        last = joined[-1] if joined else None
        if last is not None and last.source == span.source and last.end == span.start:
            joined[-1] = Span(span.source, last.start, span.end)
        else:
            joined.append(span)
    return joined
