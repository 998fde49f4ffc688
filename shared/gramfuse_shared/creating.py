"""Files that are created once: whole, on the disk, readable by their owner only, and never over one that is there."""

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
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content())
            stream.flush()
            os.fsync(stream.fileno())
        os.link(beside, path)  # complete at once, and never over a file that is there
    except FileExistsError:
        return False  # somebody was first: what they wrote counts
    finally:
        beside.unlink()
    return True


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
