"""Data sets by name: from a hub, or from a local folder that the `datasets` library reads."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from benchmarks.paper.emotions import EMOTIONS
from benchmarks.paper.examples import Example, Part
from datasets import ClassLabel, Dataset, Features, List, load_dataset
from sentences import LABELS

SPLITS: Final[Mapping[Part, str]] = {"train": "train", "dev": "validation", "test": "test"}
KINDS: Final[Mapping[str, str]] = {
    "PER": "PER",
    "PERSON": "PER",
    "LOC": "LOC",
    "LOCATION": "LOC",
    "GEO-LOC": "LOC",
    "GPE": "LOC",
    "ORG": "ORG",
    "ORGANIZATION": "ORG",
    "CORPORATION": "ORG",
    "COMPANY": "ORG",
    "GROUP": "ORG",
}
"""The kinds of entities that the tables count, by their names in data sets, in capitals; others are none."""


def hub_examples(name: str, part: Part, at_most: int | None) -> list[Example]:
    """Read a part of a data set, `NAME` or `NAME:CONFIGURATION`, as the shipped corpora are written.

    Records with `tokens` and `ner_tags` or `tags` become sentences with entities, those with `text` (or `sentence`)
    and `labels` or `label` texts with emotions. Numbers stand for the names that the data set's features give them.

    Raises:
        ValueError: its columns are neither, or its numbers have no names.
    """
    path, _, configuration = name.partition(":")
    found: Dataset = load_dataset(path, configuration or None, split=SPLITS[part])
    if at_most is not None:
        found = found.select(range(min(at_most, len(found))))
    columns = set(found.column_names)
    tags = next((column for column in ("ner_tags", "tags") if column in columns), None)
    if "tokens" in columns and tags is not None:
        names = _names(found.features, tags)
        return [{"tokens": record["tokens"], "tags": [_tag(names(tag)) for tag in record[tags]]} for record in found]
    text = next((column for column in ("text", "sentence") if column in columns), None)
    labels = next((column for column in ("labels", "label") if column in columns), None)
    if text is not None and labels is not None:
        names = _names(found.features, labels)
        return [{"text": record[text], "labels": _emotions(map(names, _listed(record[labels])))} for record in found]
    msg = f"{name} has the columns {', '.join(sorted(columns))}; wanted are tokens and ner_tags, or text and labels"
    raise ValueError(msg)


def _names(features: Features, column: str) -> Any:  # noqa: ANN401 - a function from a value to its name
    feature = features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    if isinstance(inner, ClassLabel):
        return inner.int2str
    if getattr(inner, "dtype", None) == "string":
        return str
    msg = f"the numbers in {column} have no names"
    raise ValueError(msg)


def _tag(name: str) -> str:
    place, _, kind = name.partition("-")
    tag = f"{place}-{KINDS.get(kind.upper(), '')}"
    return tag if tag in LABELS else "O"


def _listed(value: Any) -> list[Any]:  # noqa: ANN401 - a number, a name, or several
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _emotions(names: Iterable[str]) -> list[str]:
    return [name.lower() for name in names if name.lower() in EMOTIONS]
