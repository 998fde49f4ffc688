"""Files that are there whole or not at all, and folders for their owner only."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gramfuse_shared.errors import FileUnwritableError


@contextmanager
def written_whole(path: Path, *, private: bool = True) -> Iterator[IO[bytes]]:
    """Write a file beside its place and rename it on a clean exit; on any other, nothing is left behind.

    It is for its owner only (0600), whatever it replaces; or, where it is not `private`, as the umask says.

    Raises:
        FileUnwritableError: the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(beside, "xb", opener=_opener_for_owner if private else None) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise FileUnwritableError(msg) from error
    finally:
        beside.unlink(missing_ok=True)


def open_for_owner(path: Path) -> IO[bytes]:
    """Open a file to be written anew, for its owner only."""
    return open(path, "wb", opener=_opener_for_owner)


def _opener_for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def private_folder(folder: Path) -> Path:
    """Make a folder, and the one that it is in, for its owner only, where they are not there yet; return it.

    Raises:
        FileUnwritableError: one cannot be made.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be made: {error.strerror}"
        raise FileUnwritableError(msg) from error
    return folder
