"""What an organization's own head says of labels: how many there are, and which rows have the base's values still."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from gramfuse.contributing.loading import ModelFolder, StoredTensor, content_of, open_model_folder, read_json_object
from gramfuse_shared import limits
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.labels import label_count, label_parameters
from gramfuse_shared.contract.manifest import BaseManifest, TrainedLabels
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import ArchitectureMismatchError, DocumentMalformedError, FileUnreadableError

CONFIG_FILE: Final = "config.json"
_MOST_BYTES: Final = 64 * limits.MIB
"""Largest parameter of a head that is compared for a warning."""


def declare_labels(trained: Sequence[int], model: ModelFolder, base_folder: Path | None) -> TrainedLabels | None:
    """Say which of the labels of a model's config.json were trained; None where all were, which needs no words.

    Raises:
        FileUnreadableError: no config.json is known.
        ArchitectureMismatchError: it says no number of labels.
        DocumentMalformedError: an id is not one of them.
    """
    labels = trained_labels(trained, _count(model, base_folder))
    return None if len(labels.trained) == labels.count else labels


def trained_labels(trained: Sequence[int], count: int) -> TrainedLabels:
    """Return label ids, in whatever order and number they are given, as a manifest holds them.

    Raises:
        DocumentMalformedError: an id is none of the labels.
    """
    try:
        return TrainedLabels.model_validate({"count": count, "trained": sorted(set(trained))})
    except ValidationError as error:
        raise DocumentMalformedError(describe_validation("labels", error.errors())) from error


def untouched_labels(
    model: ModelFolder, base_folder: Path | None, base: BaseManifest, policy: Policy
) -> frozenset[int]:
    """Return the label ids whose rows of a shared head are the base's, byte for byte; none where it is not known.

    Raises:
        FileUnreadableError, HeaderMalformedError, HeaderTooLargeError: a file.
    """
    if policy.heads != "shared" or base_folder is None:
        return frozenset()
    try:
        count = _count(model, base_folder)
        names = label_parameters(base.tensors, base.vocabulary_size, policy, count)
    except (ArchitectureMismatchError, FileUnreadableError):
        return frozenset()  # its labels are not told apart, or not known: there is nothing to warn of
    theirs = open_model_folder(base_folder).tensors
    untouched = set(range(count))
    for name in names:
        mine, origin = model.tensors.get(name), theirs.get(name)
        if mine is None or origin is None or mine.info.shape != origin.info.shape or mine.length > _MOST_BYTES:
            return frozenset()
        if model.encoding == "bf16-delta":
            rows, others = _rows(mine, count), [bytes(mine.length // count)] * count
        elif mine.info.dtype == origin.info.dtype:
            rows, others = _rows(mine, count), _rows(origin, count)
        else:
            return frozenset()
        untouched &= {number for number, (row, other) in enumerate(zip(rows, others, strict=True)) if row == other}
    return frozenset(untouched)


def _count(model: ModelFolder, base_folder: Path | None) -> int:
    """Return the number of labels of the model, or of the base where differences from it have no config.json."""
    folder = model.path if base_folder is None or (model.path / CONFIG_FILE).is_file() else base_folder
    return label_count(read_json_object(folder / CONFIG_FILE))


def _rows(tensor: StoredTensor, count: int) -> list[bytes]:
    content, length = b"".join(content_of(tensor).chunks()), tensor.length // count
    return [content[start : start + length] for start in range(0, length * count, length)] if length else [b""] * count
