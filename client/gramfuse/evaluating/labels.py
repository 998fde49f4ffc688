"""Turns the labels of texts, by name or id, into tensors of a model's label ids."""

from collections.abc import Sequence

import torch
from torch import nn

from gramfuse.evaluating.tasks import LANGUAGE_TASKS, LabelNames
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.metrics import Task
from gramfuse_shared.errors import ConfigurationError

Label = str | int | Sequence[str | int]
"""A label by its name in the model's config, or its id; a tag per word; or the labels of a text with several."""


def require_as_many(texts: Sequence[Text], labels: Sequence[Label] | None) -> None:
    """Require texts, and where there are labels one for each.

    Raises:
        ConfigurationError: there are none, or not as many.
    """
    if not texts or (labels is not None and len(labels) != len(texts)):
        msg = f"{len(texts)} texts and {len(labels or ())} labels: there has to be a text, and a label for each"
        raise ConfigurationError(msg)


def checked_labels(
    model: nn.Module, task: Task, texts: Sequence[Text], labels: Sequence[Label] | None
) -> Sequence[Label]:
    """Return the labels of a classifier's texts; none of a language model's, whose labels are the texts themselves.

    Raises:
        ConfigurationError: labels are missing or spare, or a text lacks its target.
    """
    if task not in LANGUAGE_TASKS:
        if labels is None:
            msg = f"{type(model).__name__} needs labelled texts, and no labels were given"
            raise ConfigurationError(msg)
        return labels
    if labels is not None:
        msg = f"{type(model).__name__} writes text: its labels are the texts themselves, which it takes without labels"
        raise ConfigurationError(msg)
    if task == "seq2seq-lm" and not all(isinstance(text, tuple) for text in texts):
        msg = "a model that writes a target from a source needs pairs of both (--pair-field)"
        raise ConfigurationError(msg)
    return ()


def class_ids(labels: Sequence[Label], names: LabelNames) -> torch.Tensor:
    """Return [texts] of ids.

    Raises:
        ConfigurationError: a label that the model lacks, or a list of labels.
    """
    for number, label in enumerate(labels, start=1):
        if not isinstance(label, str | int):
            msg = (
                f"text {number} has a list of labels, and the model gives one to each; of a model that gives several, "
                'the config says "problem_type": "multi_label_classification"'
            )
            raise ConfigurationError(msg)
    return torch.tensor([names.id_of(label, f"text {number}") for number, label in enumerate(labels, start=1)])


def label_sets(labels: Sequence[Label], names: LabelNames) -> torch.Tensor:
    """Return [texts, labels] of booleans; a single label is a set of one.

    Raises:
        ConfigurationError: a label that the model lacks.
    """
    sets = torch.zeros(len(labels), len(names.names), dtype=torch.bool)
    for row, label in enumerate(labels):
        for one in [label] if isinstance(label, str | int) else label:
            sets[row, names.id_of(one, f"text {row + 1}")] = True
    return sets


def tag_ids(texts: Sequence[Text], labels: Sequence[Label], names: LabelNames) -> list[list[int]]:
    """Return per text a tag id per word.

    Raises:
        ConfigurationError: a tag that the model lacks, or not one tag per word.
    """
    found = []
    for number, (text, tags) in enumerate(zip(texts, labels, strict=True), start=1):
        if not isinstance(text, list) or isinstance(tags, str | int) or len(text) != len(tags):
            msg = f"text {number}: tags are given as one list, with one for each word of a list of words"
            raise ConfigurationError(msg)
        found.append([names.id_of(tag, f"text {number}") for tag in tags])
    return found
