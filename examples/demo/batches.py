"""Turn sentences into what a token classifier trains on: subwords with labels, in padded batches."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from sentences import LABELS, Sentence
from transformers import PreTrainedTokenizerBase

MAX_SUBWORDS: Final = 128
IGNORED: Final = -100  # the label that cross_entropy skips


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sentence as subwords. `places[w]` is where word w begins; a word that was cut off has no place."""

    position: int
    input_ids: tuple[int, ...]
    places: dict[int, int]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Sentences padded to the longest; tensors are [sentences, subwords]."""

    sentences: tuple[Encoded, ...]
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor

    def on(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(self.sentences, inputs, self.labels.to(device))


def encode(sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Split words into subwords; a word's first subword bears its label, the others none."""
    encoding = tokenizer(
        [list(sentence.tokens) for sentence in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=MAX_SUBWORDS,
    )
    encoded = []
    for position, (sentence, input_ids) in enumerate(zip(sentences, encoding["input_ids"], strict=True)):
        places: dict[int, int] = {}
        for place, word in enumerate(encoding.word_ids(position)):
            if word is not None:
                places.setdefault(word, place)
        labels = [IGNORED] * len(input_ids)
        for word, place in places.items():
            labels[place] = LABELS.index(sentence.tags[word])
        encoded.append(Encoded(position, tuple(input_ids), places, tuple(labels)))
    return encoded


def batches(
    encoded: Sequence[Encoded], *, batch_size: int, padding_id: int, shuffle: random.Random | None = None
) -> Iterator[Batch]:
    """Batches of sentences of similar length, so that little of a batch is padding; in random order if asked."""
    jitter = shuffle.random if shuffle else lambda: 0.0
    by_length = sorted(encoded, key=lambda sentence: len(sentence.input_ids) + 4 * jitter())
    groups = [tuple(by_length[i : i + batch_size]) for i in range(0, len(by_length), batch_size)]
    if shuffle:
        shuffle.shuffle(groups)
    for group in groups:
        input_ids = _padded([sentence.input_ids for sentence in group], padding_id)
        mask = _padded([(1,) * len(sentence.input_ids) for sentence in group], 0)
        labels = _padded([sentence.labels for sentence in group], IGNORED)
        yield Batch(group, {"input_ids": input_ids, "attention_mask": mask}, labels)


def _padded(rows: list[tuple[int, ...]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + (value,) * (longest - len(row)) for row in rows])  # [rows, longest]
