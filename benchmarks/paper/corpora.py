"""Where the texts come from: shipped files and data sets, by corpus and part."""

import gzip
import json
from dataclasses import dataclass
from typing import Final

from benchmarks.paper import DEMO
from benchmarks.paper.examples import Example, Part
from benchmarks.paper.hub import hub_examples

SHIPPED: Final = DEMO / "data"
WITHOUT_USER_NAMES: Final = frozenset({"wnut17"})
"""Corpora whose guidelines do not count user names such as `@somebody` as entities, where the others' do."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus by name; at most so many examples of each part, or all."""

    name: str
    at_most: int | None = None

    def examples(self, part: Part) -> list[Example]:
        """The examples of a part: of a shipped file, else of a data set by that name."""
        shipped = SHIPPED / f"{self.name}.{part}.jsonl.gz"
        if not shipped.exists():
            return hub_examples(self.name, part, self.at_most)
        raw = shipped.read_bytes()
        examples = [json.loads(line) for line in gzip.decompress(raw).decode().splitlines()[: self.at_most]]
        spoken = {"user_names": False} if self.name in WITHOUT_USER_NAMES else {}
        return [example | spoken for example in examples]
