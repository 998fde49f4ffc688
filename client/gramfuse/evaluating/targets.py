"""What a model should have predicted for each text: given labels as the loss of its training takes them."""

from collections.abc import Sequence

import torch

from gramfuse.evaluating.labels import Label, checked_labels, class_ids, label_sets, tag_ids
from gramfuse.evaluating.predicting import require_words
from gramfuse.evaluating.tasks import LANGUAGE_TASKS, label_names_of, task_of
from gramfuse.measuring.batching import TokenizedText
from gramfuse.measuring.example_losses import IGNORED, GivenLabels
from gramfuse.measuring.inference import OpenModel
from gramfuse.measuring.texts import Text


def given_labels(
    opened: OpenModel, texts: Sequence[Text], tokenized: Sequence[TokenizedText], labels: Sequence[Label] | None
) -> GivenLabels:
    """Return the labels of the texts for the model's task.

    A word's tag is that of its first token; its other tokens, and what is no part of a word, have none. A language
    model predicts every token of a text but the first, or all of a target.

    Raises:
        ConfigurationError: the task is not known; labels are missing, spare or unknown to the model.
    """
    task = task_of(opened.model)
    found = checked_labels(opened.model, task, texts, labels)
    if task in LANGUAGE_TASKS:
        return GivenLabels([torch.tensor(_written(text), dtype=torch.long) for text in tokenized])
    names = label_names_of(opened.model)
    if task == "token-classification":
        tags = tag_ids(texts, found, names)
        return GivenLabels([_at_first_tokens(text, own) for text, own in zip(tokenized, tags, strict=True)])
    if task == "multi-label-classification":
        return GivenLabels(list(label_sets(found, names)))
    return GivenLabels(list(class_ids(found, names)[:, None]))


def _written(text: TokenizedText) -> list[int]:
    return text.ids[1:] if text.target is None else text.target


def _at_first_tokens(text: TokenizedText, tags: Sequence[int]) -> torch.Tensor:
    target = torch.full((len(text.ids),), IGNORED)
    for place, tag in zip(require_words(text), tags, strict=True):
        if place is not None:
            target[place] = tag
    return target
