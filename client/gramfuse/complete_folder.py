"""A folder that is complete or not there: it grows beside its place and takes it in one rename."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gramfuse_shared.errors import FileUnwritableError


@contextmanager
def complete_folder(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a folder beside the target, which takes the target's place on a clean exit and vanishes on any other.

    A `private` one is for its owner only (0700).

    Raises:
        FileUnwritableError: the disk is full or not writable.
    """
    target = target.absolute()
    beside = target.with_name(f".{target.name}.partial")
    try:
        if beside.exists():  # an earlier run was killed
            shutil.rmtree(beside)
        beside.mkdir(0o700 if private else 0o777, parents=True)
    except OSError as error:
        msg = f"{beside} cannot be made: {error.strerror}; choose another folder"
        raise FileUnwritableError(msg) from error
    try:
        yield beside
        _swap(beside, target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        msg = f"{target} cannot be written: {error.strerror}"
        raise FileUnwritableError(msg) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _swap(beside: Path, target: Path) -> None:
    """Put the new folder in the target's place; the old one is deleted last, so that one of them always exists."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    beside.rename(target)
    if old.exists():
        shutil.rmtree(old)
