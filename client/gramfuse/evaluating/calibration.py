"""Counts the scores of a model's classes on an organization's own held-out, labelled texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gramfuse.evaluating.labels import Label, class_ids, label_sets, tag_ids
from gramfuse.evaluating.predicting import logits_of
from gramfuse.evaluating.tasks import LANGUAGE_TASKS, LabelNames, label_names_of, task_of
from gramfuse.measuring.batching import tokenize
from gramfuse.measuring.inference import Progress, open_model
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.calibration import (
    BINS,
    CalibrationHistograms,
    ClassHistogram,
    ScoreKind,
    bin_edge,
)
from gramfuse_shared.contract.metrics import Task
from gramfuse_shared.errors import ConfigurationError


def collect_calibration(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    labels: Sequence[Label],
    *,
    minimum_examples: int,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> CalibrationHistograms:
    """Count, for each class, the scores of texts (or words) that bear its label, and of those that do not.

    Args:
        model: the merged model, a `from_pretrained` folder or in memory.
        texts: ones that it was not trained on; a list of words each for a token classifier.
        labels: as `evaluate` takes them.
        minimum_examples: a class is left out unless so many distinct texts bear its label, and so many do not.
        tokenizer: for a model in memory; a folder brings its own.
        batch_size: texts per forward pass.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most. Words that are cut
            off are not counted.
        device: "auto", "cpu", "cuda", "cuda:1", …
        on_progress: called after each batch.
        is_cancelled: asked after each batch.

    Raises:
        ConfigurationError: the model is no classifier, or a label is missing or unknown to it.
        CancelledError: `is_cancelled` said so.
    """
    if len(labels) != len(texts):
        msg = f"{len(texts)} texts and {len(labels)} labels: scores are counted of texts with a label each"
        raise ConfigurationError(msg)
    opened = open_model(model, tokenizer=tokenizer, device=device)
    task = task_of(opened.model)
    if task in LANGUAGE_TASKS:
        msg = f"{type(opened.model).__name__} writes text: it has no classes whose scores could be counted"
        raise ConfigurationError(msg)
    names = label_names_of(opened.model)
    true = _label_rows(task, texts, labels, names)
    tokenized = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=False)
    found = logits_of(opened, tokenized, batch_size=batch_size, on_progress=on_progress, is_cancelled=is_cancelled)
    hashes = [text.content_hash() for text in tokenized]
    scored = [(logits.reshape(-1, len(names.names)), rows) for logits, rows in zip(found, true, strict=True)]
    kind: ScoreKind = "logit" if task == "multi-label-classification" else "margin"
    return count_scores(scored, hashes, kind=kind, labels=len(names.names), minimum_examples=minimum_examples)


def count_scores(
    scored: Sequence[tuple[torch.Tensor, torch.Tensor]],
    hashes: Sequence[bytes],
    *,
    kind: ScoreKind,
    labels: int,
    minimum_examples: int,
) -> CalibrationHistograms:
    """Count the scores of predictions.

    Args:
        scored: per text its logits [rows, labels], NaN where nothing was predicted, and [rows, labels] of booleans:
            which labels a row bears.
        hashes: what each text is known again by.
        kind: which score a class has.
        labels: how many the model has.
        minimum_examples: distinct texts that must bear a label, and that must hold a row that does not.
    """
    edges = torch.tensor([bin_edge(number) for number in range(1, BINS)], dtype=torch.float64)  # the inner ones
    counts = torch.zeros(2, labels, BINS, dtype=torch.long)
    texts: tuple[list[set[bytes]], list[set[bytes]]] = ([set() for _ in range(labels)], [set() for _ in range(labels)])
    for (logits, true), example in zip(scored, hashes, strict=True):
        seen = ~logits.isnan().all(dim=1)
        bins = torch.bucketize(scores_of(logits[seen].double(), kind), edges)  # [rows, labels]; edge k < s ≤ edge k+1
        for side, rows in enumerate((true[seen], ~true[seen])):
            for label in rows.any(dim=0).nonzero()[:, 0].tolist():
                texts[side][label].add(example)
                counts[side, label] += torch.bincount(bins[rows[:, label], label], minlength=BINS)
    classes = tuple(
        ClassHistogram(label=label, labelled=tuple(counts[0, label].tolist()), others=tuple(counts[1, label].tolist()))
        for label in range(labels)
        if min(len(texts[0][label]), len(texts[1][label])) >= max(minimum_examples, 1)
    )
    return CalibrationHistograms(score=kind, labels=labels, classes=classes)


def scores_of(logits: torch.Tensor, kind: ScoreKind) -> torch.Tensor:
    """Return each class's score [rows, labels]: its logit, or its margin over the largest other."""
    if kind == "logit":
        return logits
    best = logits.topk(2, dim=1)
    rival = best.values[:, :1].expand_as(logits).clone()
    rival.scatter_(1, best.indices[:, :1], best.values[:, 1:])
    return logits - rival


def _label_rows(task: Task, texts: Sequence[Text], labels: Sequence[Label], names: LabelNames) -> list[torch.Tensor]:
    """Return per text [rows, labels] of booleans."""
    if task == "multi-label-classification":
        return list(label_sets(labels, names)[:, None])
    if task == "token-classification":
        return [_one_hot(torch.tensor(ids), names) for ids in tag_ids(texts, labels, names)]
    return list(_one_hot(class_ids(labels, names), names)[:, None])


def _one_hot(ids: torch.Tensor, names: LabelNames) -> torch.Tensor:
    return torch.nn.functional.one_hot(ids.long(), len(names.names)).bool()
