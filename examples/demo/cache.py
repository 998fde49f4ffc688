"""Trained models, kept by everything that decides what training yields."""

import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LIBRARIES: Final = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of finished folders, each named by its key. What is not finished bears another name."""

    folder: Path

    def kept(self, key: str) -> Path:
        """Where the finished folder of this key is, or will be."""
        return self.folder / key

    def begin(self, key: str) -> Path:
        """Return an empty folder to make the contents in."""
        unfinished = self.folder / f"{key}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        return unfinished

    def finish(self, key: str) -> None:
        """Keep what was made."""
        (self.folder / f"{key}.unfinished").rename(self.kept(key))


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
