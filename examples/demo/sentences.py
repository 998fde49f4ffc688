"""Sentences with named entities, as files. Needs no torch, so that the demo itself starts at once."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LABELS: Final = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and one tag each."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


def read_sentences(path: Path, *, at_most: int | None = None) -> list[Sentence]:
    """Read JSON lines (`.gz` or plain) of `{"tokens": [...], "tags": [...]}`."""
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()[:at_most]
    records = [json.loads(line) for line in lines]
    return [Sentence(tuple(record["tokens"]), tuple(record["tags"])) for record in records]


def write_sentences(path: Path, sentences: Sequence[Sentence]) -> None:
    """Write JSON lines as `read_sentences` and `gramfuse stats collect` read them."""
    with path.open("w", encoding="utf-8") as lines:
        for sentence in sentences:
            record = {"tokens": sentence.tokens, "tags": sentence.tags}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
