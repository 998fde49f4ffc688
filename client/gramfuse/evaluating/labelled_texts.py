"""Reads labelled texts: records of a text, or of words, with the labels beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from gramfuse.evaluating.labels import Label
from gramfuse.evaluating.tasks import LANGUAGE_TASKS
from gramfuse.measuring.texts import Fields, Text, read_records, read_texts, text_of
from gramfuse_shared.contract.metrics import Task
from gramfuse_shared.errors import ConfigurationError, DocumentMalformedError

_LABEL_FIELDS: Final = ("label", "labels")
_TAG_FIELDS: Final = ("tags", "ner_tags", "labels")


@dataclass(frozen=True, slots=True)
class LabelFields:
    """Which field of a record holds the labels: of the text, or a tag per word. Neither: found by the usual names."""

    label: str | None = None
    tags: str | None = None

    def __post_init__(self) -> None:
        if self.label is not None and self.tags is not None:
            msg = "a record's labels are either the text's (--label-field) or the words' (--tags), not both"
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts, and the labels of each."""

    texts: list[Text]
    labels: list[Label]


def read_texts_of_task(
    task: Task,
    path: Path,
    fields: Fields | None = None,
    labels: LabelFields | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
) -> tuple[list[Text], list[Label] | None]:
    """Read texts with the labels that a model of the task predicts; of a language model, whose labels they are, alone.

    Raises:
        FileUnreadableError, DocumentMalformedError, ConfigurationError: see `read_labelled_texts`.
    """
    if task in LANGUAGE_TASKS:
        return read_texts(path, fields, split=split, limit=limit), None
    found = read_labelled_texts(path, fields, labels, split=split, limit=limit)
    return found.texts, found.labels


def read_labelled_texts(
    path: Path,
    fields: Fields | None = None,
    labels: LabelFields | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
) -> LabelledTexts:
    """Read at most `limit` texts with their labels, in the file's order; empty texts are left out.

    Args:
        path: `*.jsonl` or `*.json` with an object per line (also as `*.gz`), or a folder of `datasets`.
        fields: which fields of a record hold the text.
        labels: which field holds the labels.
        split: which split of a saved DatasetDict.
        limit: None for all.

    Raises:
        FileUnreadableError: no such file or folder, or not readable.
        DocumentMalformedError: a record is malformed, or has no labels; the message names the line.
        ConfigurationError: a split or field must be named.
    """
    pairs = list(islice(_pairs(path, fields or Fields(), labels or LabelFields(), split), limit))
    if not pairs:
        msg = f"{path} holds no text"
        raise DocumentMalformedError(msg)
    return LabelledTexts([text for text, _ in pairs], [label for _, label in pairs])


def _pairs(path: Path, fields: Fields, labels: LabelFields, split: str | None) -> Iterator[tuple[Text, Label]]:
    for where, record in read_records(path, split=split):
        text = text_of(record, fields, where)
        if text:
            yield text, _label_of(record, text, labels, where)


def _label_of(record: Any, text: Text, labels: LabelFields, where: str) -> Label:  # noqa: ANN401 - any JSON value
    if not isinstance(record, Mapping):
        msg = f'{where} is a text without labels: a model is scored on JSON lines, such as {{"text": …, "label": …}}'
        raise DocumentMalformedError(msg)
    usual = _TAG_FIELDS if isinstance(text, list) else _LABEL_FIELDS
    name = labels.label or labels.tags or next((name for name in usual if name in record), None)
    if name is None or name not in record:
        wanted = f"no field {name!r}" if name else f"none of the fields {', '.join(usual)}"
        msg = f"{where} has {wanted}, which would hold the labels: name it with --label-field or --tags"
        raise DocumentMalformedError(msg)
    found = record[name]
    if _is_label(found) or (isinstance(found, list) and all(_is_label(one) for one in found)):
        return found  # type: ignore[no-any-return] # just seen what it is
    msg = f"{where}: {name!r} holds neither a label (its name or id) nor a list of labels"
    raise DocumentMalformedError(msg)


def _is_label(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
