"""What the attacks share, computed once: the encoder, real texts, and the rows that they bring to its taps."""

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch

from gramfuse.measuring.batching import batch_inputs
from gramfuse.measuring.inference import open_model
from gramfuse.measuring.model_loading import load_model
from gramfuse.privacy.reading_rows import rows_of_texts
from gramfuse.privacy.token_counts import token_dictionary
from support.tweets import QUERY, SECTIONS, build_minilm, tokenized, tweets

MEASURED, OTHERS, PUBLIC = 1_000, 300, 300
TRAINED = 48
DEPTHS = (1, 5)
"""Blocks at whose entrance mixed rows are looked at: the second, and the last."""


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    return build_minilm(tmp_path_factory.mktemp("minilm") / "base")


@pytest.fixture(scope="session")
def encoder(minilm):
    return open_model(minilm, device="cpu")


@pytest.fixture(scope="session")
def dictionary(encoder):
    return token_dictionary(encoder, QUERY.format(0), len(encoder.tokenizer))


@dataclass(frozen=True)
class Corpus:
    """`gram` [d, d] of the first tap over `rows` rows, and how often each token occurred."""

    gram: torch.Tensor
    rows: int
    counts: Counter


@pytest.fixture(scope="session")
def corpus(encoder):
    """The tap that the embeddings feed, over 30,000 rows of four sections' tweets."""
    gram, rows, counts = torch.zeros(384, 384), 0, Counter()
    with torch.no_grad():
        for text in tokenized(encoder, tuple(text for section in SECTIONS for text in tweets(section))):
            if rows >= 30_000:
                break
            # The rows of this tap are the embedding module's output; the attack itself reads them by its own hooks.
            embedded = encoder.model.bert.embeddings(input_ids=torch.tensor([text.ids]))[0]
            gram += embedded.T @ embedded
            rows += len(text.ids)
            counts.update(text.ids)
    return Corpus(gram, rows, counts)


@dataclass(frozen=True)
class MixedRows:
    """The rows of each text at one tap behind attention: of tweets that are measured, of others of their kind, and of
    public ones of another kind, which an attacker has in any case.
    """

    mine: tuple[torch.Tensor, ...]
    others: tuple[torch.Tensor, ...]
    public: tuple[torch.Tensor, ...]


@pytest.fixture(scope="session")
def mixed_rows(encoder):
    """Rows by the depth of the block that they enter."""
    parts = (tweets("btc-f")[:MEASURED], tweets("btc-f", "test")[:OTHERS], tweets("btc-g")[:PUBLIC])
    layers = {QUERY.format(depth): depth for depth in DEPTHS}
    read = dict(rows_of_texts(encoder, tokenized(encoder, sum(parts, ())), tuple(layers)))
    found = {}
    for layer, depth in layers.items():
        rows = iter([read[place][layer] for place in sorted(read)])
        found[depth] = MixedRows(*(tuple(islice(rows, len(part))) for part in parts))
    return found


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned copy of the encoder, and the tokens that its training texts hold."""

    folder: Path
    tokens: frozenset[int]


@pytest.fixture(scope="session")
def tuned(minilm, encoder, tmp_path_factory):
    """Two organizations' models, each trained on a few of its own tweets, embeddings and all."""
    return [_fine_tune(minilm, encoder, section, tmp_path_factory.mktemp(section)) for section in ("btc-f", "btc-g")]


def _fine_tune(minilm, encoder, section, folder):
    torch.manual_seed(0)
    model = load_model(minilm, torch.device("cpu")).train()
    texts = tokenized(encoder, tweets(section)[:TRAINED])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    for start in range(0, len(texts), 16):
        inputs = batch_inputs(model, texts[start : start + 16], encoder.pad, torch.device("cpu"))
        # Labels by a rule: what the model learns does not matter to the attacks, that it learns does.
        labels = (inputs["input_ids"] % 7).masked_fill(inputs["attention_mask"] == 0, -100)
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return Tuned(folder, frozenset(token for text in texts for token in text.ids))
