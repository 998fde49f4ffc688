"""Runs a classifier over texts and returns its logits: what scores, ensembles and rounds are computed from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gramfuse.evaluating.tasks import LANGUAGE_TASKS, task_of
from gramfuse.measuring.batching import TokenizedText, tokenize
from gramfuse.measuring.inference import OpenModel, Progress, open_model, run
from gramfuse.measuring.texts import Text
from gramfuse_shared.errors import ConfigurationError, WeightsInvalidError


def predict(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[torch.Tensor]:
    """Return the logits of each text, F32 on the CPU: [labels], or [words, labels] of a token classifier.

    A word's logits are those of its first token; a word that was cut off, or that has no token, has NaN.

    Args:
        model: a `from_pretrained` folder, or a transformers model in memory (moved to `device` and back).
        texts: each a text, a pair of texts, or a list of words; a token classifier takes lists of words only.
        tokenizer: for a model in memory; a folder brings its own.
        batch_size: texts per forward pass; it does not change the result.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        on_progress: called after each batch.
        is_cancelled: asked after each batch.

    Raises:
        ConfigurationError: the model is no classifier, or a text of a token classifier is not given as words.
        WeightsInvalidError: the predictions hold NaN or infinity.
        CancelledError: `is_cancelled` said so.
    """
    opened = open_model(model, tokenizer=tokenizer, device=device)
    tokenized = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=False)
    return logits_of(opened, tokenized, batch_size=batch_size, on_progress=on_progress, is_cancelled=is_cancelled)


def logits_of(
    opened: OpenModel,
    texts: Sequence[TokenizedText],
    *,
    batch_size: int,
    on_progress: Callable[[Progress], None],
    is_cancelled: Callable[[], bool],
) -> list[torch.Tensor]:
    """Do what `predict` does, with an open model and tokenized texts."""
    task, config = task_of(opened.model), opened.model.config
    if task in LANGUAGE_TASKS:
        msg = f"{type(opened.model).__name__} writes text: it has no labels to predict"
        raise ConfigurationError(msg)
    labels: int = config.num_labels  # type: ignore[union-attr,assignment] # transformers' attribute
    found = [torch.full((labels,), torch.nan) for _ in texts]
    if task == "token-classification":
        found = [torch.full((len(require_words(text)), labels), torch.nan) for text in texts]
    batches = run(opened, texts, batch_size=batch_size, on_progress=on_progress, is_cancelled=is_cancelled)
    for batch in batches:
        for at, logits in zip(batch.positions, batch.output.logits.float().cpu(), strict=True):
            if task == "token-classification":
                seen = [(word, place) for word, place in enumerate(require_words(texts[at])) if place is not None]
                found[at][[word for word, _ in seen]] = _require_finite(logits[[place for _, place in seen]])
            else:
                found[at].copy_(_require_finite(logits))
    return found


def _require_finite(logits: torch.Tensor) -> torch.Tensor:
    if not bool(logits.isfinite().all()):
        msg = "the model's predictions hold NaN or infinity"
        raise WeightsInvalidError(msg)
    return logits


def require_words(text: TokenizedText) -> tuple[int | None, ...]:
    """Return at which token each word begins.

    Raises:
        ConfigurationError: the text was not given as words, or the tokenizer does not tell.
    """
    if text.words is None:
        msg = (
            "a token classifier predicts for words: give each text as a list of words (--tokens), and a tokenizer that "
            "tells where words begin (one of PreTrainedTokenizerFast)"
        )
        raise ConfigurationError(msg)
    return text.words
