"""Trained models, kept by everything that decides what training yields."""

import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LIBRARIES: Final = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of finished folders, each named by its key."""

    folder: Path

    def obtain(self, key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
        """Return the folder of this key and whether it was there; what is missing is made beside and then renamed."""
        kept = self.folder / key
        if kept.exists():
            return kept, True
        unfinished = self.folder / f"{key}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(kept)
        return kept, False


def training_key(base: Path, sentences: Path, programs: Iterable[Path], options: Iterable[str]) -> str:
    """SHA-256 over the base's files, the sentences, the programs, their options, and the library versions."""
    decisive = {
        "base": {file.name: _digest(file) for file in base.iterdir()},
        "sentences": _digest(sentences),
        "programs": [_digest(program) for program in programs],
        "options": list(options),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
