"""Bytes by SHA-256, local or S3, through obstore. Nothing is overwritten but what is not the bytes of its name.

Keys: `sha256/<digest>` for complete files, `uploads/<upload>/<file>/<number>.<digest>` for parts. Both names contain
the digest of what they hold, so that writing one twice writes the same.
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from gramfuse_shared import limits
from gramfuse_shared.digest import sha256_hex_of_chunks
from gramfuse_shared.errors import ConfigurationError, StorageFullError

CHUNK_BYTES: Final = 4 * limits.MIB
PIECE_BYTES: Final = 4 * CHUNK_BYTES
WHOLE_BYTES: Final = 64 * limits.MIB
"""A file up to this size is stored in one piece."""
_PROBE: Final = b"gramfuse"
Persistence = Literal["hardly", "seconds", "minutes"]
"""Of who only looks; of the API, whose callers come again; of work that would be lost. Unasked, ten tries are over in
three seconds where nobody listens: a store that is started again takes longer."""
_RETRIES: Final = MappingProxyType({
    "hardly": {"max_retries": 1, "retry_timeout": timedelta(seconds=5)},
    "seconds": {"max_retries": 10, "retry_timeout": timedelta(seconds=20)},
    # a request's signature holds for five minutes, and it is not signed anew
    "minutes": {
        "max_retries": 1000,
        "retry_timeout": timedelta(minutes=4),
        "backoff": {"max_backoff": timedelta(seconds=2)},
    },
})  # fmt: skip
_FULL: Final = re.compile(r"\bkind: (StorageFull|\w*QuotaExceeded)\b")
_UNFINISHED: Final = re.compile(r"#\d+$")


COMPLETE: Final = "sha256/"
"""Where complete files lie."""
PARTS: Final = "uploads/"
"""Where parts lie, by upload."""


def blob_key(sha256: str) -> str:
    """Where a complete file lies."""
    return f"{COMPLETE}{sha256}"


SUMS: Final = "sums/"
"""Where the sums lie that unfinished jobs merge in place of contributions."""


def sums_key(project: str, job: str, attempt: int) -> str:
    """Where the sums lie that an attempt of a job merges."""
    return f"{SUMS}{project}/{job}/{attempt}"


def part_key(upload: str, file: str, number: int, sha256: str) -> str:
    """Where a part lies until its file is assembled."""
    return f"{PARTS}{upload}/{file}/{number}.{sha256}"


@dataclass(frozen=True, slots=True)
class Blobs:
    """A blob store."""

    store: ObjectStore

    @property
    def is_local(self) -> bool:
        """Whether the bytes lie in a folder of this machine, or of one that looks so."""
        return isinstance(self.store, LocalStore)

    def put(self, key: str, content: bytes | bytearray | memoryview | Path) -> bool:
        """Store bytes under a key that contains their digest; tell whether they are new there.

        Raises:
            StorageFullError: there is no room; nothing of them is shown, or stays.
        """
        try:
            with _telling_full():
                obstore.put(self.store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def put_file(self, key: str, path: Path) -> bool:
        """Store a local file under a key that contains its digest; tell whether it is new there.

        A large file travels in pieces, so that memory does not grow with it. Stores cannot make that create-only, but
        they show the key only when it is complete, and whoever else writes it writes the same bytes.

        Raises:
            StorageFullError: there is no room; nothing of it is shown, or stays.
        """
        if path.stat().st_size <= WHOLE_BYTES:
            return self.put(key, path)
        if self.size(key) is not None:
            return False
        with _telling_full():
            obstore.put(self.store, key, path, use_multipart=True, chunk_size=PIECE_BYTES)
        return True

    def put_complete(self, sha256: str, content: bytes | Path) -> bool:
        """Store a complete file under its digest; tell whether what lay there already had to be replaced.

        The content is verified by the caller. What lies there is believed for its bytes alone: a disk may have changed
        or cut it since. So where something does, its length is asked, and its SHA-256 is read if that is right. This
        costs one more reading of the file, never a writing, and only where it is there: a base model that several
        projects share, what is pushed again, work that is repeated after an interruption. Each of them has just read
        the same bytes elsewhere.

        A file that is wrong is replaced in one step, by a rename or by S3's plain PUT, which puts no condition: whoever
        reads meanwhile sees it as it was or as it shall be, and whoever else replaces it writes the same.

        Raises:
            StorageFullError: there is no room; what lay there stays.
        """
        key = blob_key(sha256)
        if isinstance(content, Path):
            length, new = content.stat().st_size, self.put_file(key, content)
        else:
            length, new = len(content), self.put(key, content)
        if new or (self.size(key) == length and sha256_hex_of_chunks(self.chunks(key)) == sha256):
            return False
        with _telling_full():
            obstore.put(self.store, key, content, use_multipart=length > WHOLE_BYTES, chunk_size=PIECE_BYTES)
        return True

    def size(self, key: str) -> int | None:
        """Length of what lies at the key, None where nothing does."""
        try:
            return int(obstore.head(self.store, key)["size"])
        except FileNotFoundError:
            return None

    def read(self, key: str, start: int, end: int) -> bytes:
        """Read the bytes [start, end) of a key.

        Raises:
            FileNotFoundError: nothing lies there.
        """
        return bytes(obstore.get_range(self.store, key, start=start, end=end)) if end > start else b""

    def chunks(self, key: str) -> Iterator[bytes]:
        """Read a key from its beginning, some megabytes at a time."""
        for chunk in obstore.get(self.store, key).stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(chunk)

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Read [start, end) of a key without blocking the event loop, some megabytes at a time."""
        while start < end:
            chunk = await obstore.get_range_async(self.store, key, start=start, end=min(end, start + CHUNK_BYTES))
            yield bytes(chunk)
            start += len(chunk)

    def keys(self, prefix: str) -> Iterator[str]:
        """List the keys under a prefix."""
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """List the keys under a prefix, and how many bytes lie at each."""
        for page in obstore.list(self.store, prefix=prefix):
            for entry in page:
                yield entry["path"], int(entry["size"])

    def delete(self, key: str) -> None:
        """Delete a key; one that is not there is deleted already."""
        try:
            obstore.delete(self.store, key)
        except FileNotFoundError:
            return

    def delete_prefix(self, prefix: str) -> int:
        """Delete every key under a prefix and return how many there were."""
        keys = list(self.keys(prefix))
        for key in keys:
            self.delete(key)
        return len(keys)

    def delete_unfinished(self, before: datetime) -> int:
        """Delete what writers that were killed left in a local folder, begun before a time; return how many files.

        The store writes `<key>#<number>` beside a key and renames it; it never shows such a file, nor finishes one.
        Object stores have rules of their own for unfinished uploads.
        """
        if not isinstance(self.store, LocalStore) or self.store.prefix is None:
            return 0
        unfinished = [path for path in Path(self.store.prefix).rglob("*#*") if _UNFINISHED.search(path.name)]
        deleted = 0
        for path in unfinished:
            with suppress(FileNotFoundError):  # its writer has just finished it, or another sweep was faster
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    deleted += 1
        return deleted

    def probe(self, name: str, *, folder: str = "probes/") -> datetime:
        """Write, read and delete a small blob; return when it was written by the store's clock.

        Raises:
            OSError: the store does not answer as it should.
        """
        key = f"{folder}{name}"
        try:
            obstore.put(self.store, key, _PROBE, use_multipart=False)
            got = obstore.get(self.store, key)
            written, found = got.meta["last_modified"], bytes(got.bytes())
            self.delete(key)
        except (BaseError, OSError) as error:
            raise OSError(str(error).partition("\n")[0]) from error
        if found != _PROBE:
            msg = "the blob store returned other bytes than were written"
            raise OSError(msg)
        return written


@contextmanager
def _telling_full() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        if _FULL.search(str(error)) is None:
            raise
        msg = "the disk of the blob store is full; its operator has to make room, then try again"
        raise StorageFullError(msg) from error


def open_blobs(url: str, *, persistence: Persistence = "seconds") -> Blobs:
    """Open the blob store of a URL; a local folder is created.

    Args:
        url: where it is.
        persistence: for how long a store that does not answer is asked again, where it is none of this machine.

    Raises:
        ConfigurationError: the URL names no store that is known, or one that cannot be opened.
    """
    options: dict[str, Any] = {"mkdir": True} if url.startswith("file:") else {}
    if not url.startswith("file:"):
        # client options are not for this: given, they would be in place of the AWS_… variables
        options["retry_config"] = _RETRIES[persistence]
    try:
        return Blobs(from_url(url, **options))
    except (BaseError, ValueError, OSError) as error:
        msg = f"GRAMFUSE_BLOBS cannot be opened: {str(error).partition(chr(10))[0]}; examples: file:///srv/blobs, s3://bucket/x"
        raise ConfigurationError(msg) from error
