"""Files that are there whole or not at all, on the disk, readable by their owner unless told otherwise."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def create_once(path: Path, content: Callable[[], bytes]) -> bool:
    """Create a file, 0600, unless there is one; tell whether it is new. Two processes at once agree on one.

    Args:
        path: the file, in a folder that is there.
        content: makes the bytes; not asked where the file is there already.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    if path.exists():
        return False
    beside = _write_beside(path, content(), 0o600)
    try:
        os.link(beside, path)  # complete at once, and never over a file that is there
    except FileExistsError:
        return False  # somebody was first: what they wrote counts
    finally:
        beside.unlink()
    return True


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file in the place of one that may be there: a reader sees all of the old bytes or all of the new ones.

    Raises:
        OSError: the folder is missing or cannot be written, or there is no room.
    """
    _write_beside(path, content, mode).replace(path)


def _write_beside(path: Path, content: bytes, mode: int) -> Path:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        beside.unlink()
        raise
    return beside


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
