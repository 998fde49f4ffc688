"""Turns the labels of texts, by name or id, into tensors of a model's label ids."""

from collections.abc import Sequence

import torch

from gramfuse.evaluating.tasks import LabelNames
from gramfuse.measuring.texts import Text
from gramfuse_shared.errors import ConfigurationError

Label = str | int | Sequence[str | int]
"""A label by its name in the model's config, or its id; a tag per word; or the labels of a text with several."""


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
