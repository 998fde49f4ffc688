"""Scores a model on an organization's own labelled texts: what `gramfuse evaluate` and `gramfuse.evaluate` do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from gramfuse.evaluating.labels import Label, checked_labels, class_ids, label_sets, require_as_many, tag_ids
from gramfuse.evaluating.language import text_losses
from gramfuse.evaluating.predicting import logits_of
from gramfuse.evaluating.scoring import score_classes, score_label_sets, score_tags, score_texts
from gramfuse.evaluating.tasks import LANGUAGE_TASKS, label_names_of, task_of
from gramfuse.measuring.batching import TokenizedText, tokenize
from gramfuse.measuring.inference import OpenModel, Progress, open_model
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.metrics import MetricName, Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model does on texts: only numbers, which say nothing else about a single text.

    `distinct_examples` counts texts that the model reads as the same once. All metrics are finite.
    """

    task: Task
    examples: int
    distinct_examples: int
    metrics: Mapping[MetricName, float]


def evaluate(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    labels: Sequence[Label] | None = None,
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Score a model on labelled texts; the task follows from the model's class and `problem_type`.

    Args:
        model: a `from_pretrained` folder, or a transformers model in memory (moved to `device` and back).
        texts: each a text, a pair of texts, or, for a token classifier, a list of words. A model that writes a target
            takes pairs of source and target.
        labels: one per text: its label by name or id, a list of them if it may have several, a list with a tag per
            word. None for a language model, whose labels are the texts.
        tokenizer: for a model in memory; a folder brings its own.
        batch_size: texts per forward pass; it does not change the result.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most. Words that are cut
            off count as `O`, or as wrong where there is no such tag.
        device: "auto", "cpu", "cuda", "cuda:1", …
        on_progress: called after each batch.
        is_cancelled: asked after each batch.

    Raises:
        ConfigurationError: no texts; labels missing, spare or unknown to the model; or nothing to score.
        WeightsInvalidError: the predictions hold NaN or infinity.
        CancelledError: `is_cancelled` said so.
    """
    require_as_many(texts, labels)
    opened = open_model(model, tokenizer=tokenizer, device=device)
    task = task_of(opened.model)
    score = _scoring(task, opened, texts, labels)  # first: a label that the model lacks is found before the work
    tokenized = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=task == "seq2seq-lm")
    run = {"batch_size": batch_size, "on_progress": on_progress, "is_cancelled": is_cancelled}
    metrics = score(tokenized, run)
    distinct = len({text.content_hash() for text in tokenized})
    return Evaluation(task, len(texts), distinct, MappingProxyType(metrics))


_Scoring = Callable[[Sequence[TokenizedText], Mapping[str, Any]], dict[MetricName, float]]


def _scoring(task: Task, opened: OpenModel, texts: Sequence[Text], labels: Sequence[Label] | None) -> _Scoring:
    found = checked_labels(opened.model, task, texts, labels)
    if task in LANGUAGE_TASKS:
        return lambda tokenized, run: score_texts(text_losses(opened, tokenized, **run))
    names = label_names_of(opened.model)
    if task == "token-classification":
        tags = tag_ids(texts, found, names)
        return lambda tokenized, run: score_tags(logits_of(opened, tokenized, **run), tags, names.names)
    if task == "multi-label-classification":
        sets = label_sets(found, names)
        return lambda tokenized, run: score_label_sets(torch.stack(logits_of(opened, tokenized, **run)), sets)
    ids = class_ids(found, names)
    return lambda tokenized, run: score_classes(torch.stack(logits_of(opened, tokenized, **run)), ids)
