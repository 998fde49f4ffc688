"""What a task is to an experiment: a head, a way to train, the texts to measure, logits, and scores of logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from benchmarks.paper.examples import Example
from benchmarks.paper.rows import Scores
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST: Final = 128  # subwords


class Task(Protocol):
    """One kind of problem. Logits are [rows, labels], one row for each thing that is labelled."""

    name: str
    architecture: Any
    programs: tuple[Path, ...]
    """The files that decide what training yields."""

    def configuration(self) -> dict[str, Any]:
        """What the base's configuration says of the labels."""

    def tokenizing(self) -> dict[str, Any]:
        """What the tokenizer needs to be told."""

    def finetune(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        *,
        epochs: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        """Train in place, embeddings frozen."""

    def texts(self, examples: Sequence[Example]) -> list[Any]:
        """What `gramfuse.collect` reads."""

    def logits(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
    ) -> torch.Tensor:
        """Predict, in the order of the examples."""

    def scores(self, examples: Sequence[Example], logits: torch.Tensor) -> Scores:
        """Judge logits by the true labels."""
