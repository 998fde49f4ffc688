"""The demo's folder: whoever uses it holds it; it is emptied before a run, but for the trained models.

    python folder.py FOLDER ...

empties these folders and needs nothing but the standard library, because `make clean` calls it.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARKER: Final = ".gramfuse-demo"  # says that a folder is ours to empty, and carries the lock
NOTE: Final = "`make demo` empties this folder at the start of every run; only cache/ and smoke/ stay.\n"
CACHE: Final = "cache"
KEPT: Final = (CACHE, "smoke", MARKER)  # a smoke run lives in the full run's folder, and is not its business


class FolderRefusedError(Exception):
    """The folder is in use, or is not the demo's."""


@dataclass(frozen=True, slots=True)
class Held:
    """The right to a folder. A service that is kept inherits `descriptor`, and so holds the folder while it lives."""

    path: Path
    descriptor: int

    def clear(self) -> None:
        """Remove what earlier runs left, but not the trained models."""
        for entry in [*_entries(self.path), *self.path.glob(f"{CACHE}/*.unfinished")]:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.leave_word("")

    def leave_word(self, word: str) -> None:
        """Tell who finds the folder held, for example how to stop the holder."""
        os.ftruncate(self.descriptor, 0)
        os.write(self.descriptor, (NOTE + word).encode())


@contextmanager
def held(folder: Path) -> Iterator[Held]:
    """Hold a folder, which is made if it is missing.

    Raises:
        FolderRefusedError: somebody holds it already, or it has other files than the demo's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if not marker.exists() and any(_entries(folder)):
        msg = f"{folder} holds files that are not the demo's, and a run would remove them; choose an empty folder"
        raise FolderRefusedError(msg)
    with marker.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            word = marker.read_text(encoding="utf-8").removeprefix(NOTE).strip()
            hint = f"; stop it: {word}" if word else ""
            msg = f"another demo, or the service that KEEP=1 left up, is using {folder}{hint}"
            raise FolderRefusedError(msg) from None
        yield Held(folder, lock.fileno())


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name not in KEPT]


def main(folders: Sequence[str]) -> int:
    """Empty folders of the demo's that exist; return the exit code."""
    try:
        for folder in filter(Path.is_dir, map(Path, folders)):
            with held(folder) as right:
                right.clear()
    except FolderRefusedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
