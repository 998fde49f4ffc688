"""A worker's local folder for what is not finished. It is locked while its process lives, so that the folders of
processes that died can be told and removed.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOCK_FILE_NAME: Final = ".lock"


@contextmanager
def own_folder(scratch: Path, name: str) -> Iterator[Path]:
    """Create a folder of one's own, remove the ones that nobody holds any more, and one's own at the end."""
    folder = scratch / name
    folder.mkdir(parents=True)
    descriptor = os.open(folder / LOCK_FILE_NAME, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for other in scratch.iterdir():
            if other != folder and _is_abandoned(other):
                shutil.rmtree(other, ignore_errors=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _is_abandoned(folder: Path) -> bool:
    """Tell whether a folder is a worker's that died: it has a lock, and nobody holds it."""
    try:
        descriptor = os.open(folder / LOCK_FILE_NAME, os.O_RDWR)
    except OSError:
        return False  # none of ours, or another worker is just making or removing it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
