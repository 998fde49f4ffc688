"""Real text and the real encoder: the tweets of examples/demo, and MiniLM as the demo builds it, without a network."""

from functools import cache
from pathlib import Path

from gramfuse.measuring.batching import TokenizedText, tokenize
from gramfuse.measuring.inference import OpenModel
from gramfuse.measuring.texts import Fields, Text, read_texts
from support.demo_modules import DEMO

SECTIONS = ("btc-b", "btc-f", "btc-g", "btc-h")
QUERY = "bert.encoder.layer.{}.attention.self.query.weight"
"""A layer that reads what enters a block: of block 0 what the embeddings make of the tokens, of others mixed rows."""


@cache
def tweets(section: str, part: str = "train") -> tuple[Text, ...]:
    """The texts of one section of the Broad Twitter Corpus, as lists of words."""
    return tuple(read_texts(DEMO / "data" / f"{section}.{part}.jsonl.gz", Fields()))


def tokenized(opened: OpenModel, texts: tuple[Text, ...]) -> list[TokenizedText]:
    """The texts as the model reads them."""
    return tokenize(opened.tokenizer, texts, 128, generates=False)


def build_minilm(folder: Path) -> Path:
    """Write the demo's base model: MiniLM with a new head."""
    from base import build  # noqa: PLC0415 - the demo's module, found once support.demo_modules is imported

    build(folder)
    return folder
