"""Where the texts come from: the shipped files, by corpus and part."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.paper import DEMO

Part = Literal["train", "dev", "test"]
Example = dict[str, Any]
"""One line of a corpus: `{"tokens": [...], "tags": [...]}`, or `{"text": ..., "labels": [...]}`.

Tokens with `"user_names": false` come from a corpus in which user names are no entities.
"""

SHIPPED: Final = DEMO / "data"
WITHOUT_USER_NAMES: Final = frozenset({"wnut17"})
"""Corpora whose guidelines do not count user names such as `@somebody` as entities, where the others' do."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus by name; at most so many examples of each part, or all."""

    name: str
    at_most: int | None = None

    def examples(self, part: Part) -> list[Example]:
        """The examples of a part."""
        raw = (SHIPPED / f"{self.name}.{part}.jsonl.gz").read_bytes()
        examples = [json.loads(line) for line in gzip.decompress(raw).decode().splitlines()[: self.at_most]]
        spoken = {"user_names": False} if self.name in WITHOUT_USER_NAMES else {}
        return [example | spoken for example in examples]


def write_examples(path: Path, examples: list[Example]) -> None:
    """Write JSON lines, the bytes decided by the examples alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(example, ensure_ascii=False, sort_keys=True) + "\n" for example in examples)
    path.write_text("".join(lines), encoding="utf-8")


def read_examples(path: Path) -> list[Example]:
    """Read what `write_examples` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
