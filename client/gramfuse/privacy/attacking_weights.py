"""The attack on embedding matrices of a model folder: which rows were trained, and so which tokens occurred."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from gramfuse.auditing.report import VocabularyTold
from gramfuse.contributing.draft import Draft
from gramfuse.contributing.loading import ModelFolder, content_of, open_model_folder
from gramfuse.privacy.membership import auc
from gramfuse.privacy.vocabulary import find_moved_rows

_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MATRIX: Final = 2


def find_vocabulary(
    draft: Draft, base_folder: Path, held: Counter[int] | None, vocabulary: int | None
) -> Iterator[VocabularyTold]:
    """Compare embedding matrices with the base's; `held` are the tokens of the private texts, None where not known.

    Rows of other embeddings, as of positions, belong to no token and are left out.
    """
    base = open_model_folder(base_folder)
    for weight in draft.plan.weights:
        name, info = weight.info.name, weight.info
        known = info.dtype in _DTYPES and name in base.tensors and base.tensors[name].info == info
        is_of_tokens = len(info.shape) == _MATRIX and vocabulary is not None and info.shape[0] == vocabulary
        if weight.role != "embedding" or not known or not is_of_tokens:
            continue
        found = find_moved_rows(_matrix(draft.model, name), _matrix(base, name))
        moved = set(found.moved.tolist())
        told = VocabularyTold(tensor=name, leaves=weight.stays_because is None, moved=len(moved))
        if held is not None:
            present = torch.zeros(info.shape[0], dtype=torch.bool)
            present[sorted(held)] = True
            score = auc(found.distances[present], found.distances[~present])
            told = told.model_copy(update={"right": len(moved & held.keys()), "auc": round(score, 4)})
        yield told


def _matrix(folder: ModelFolder, name: str) -> torch.Tensor:
    tensor = folder.tensors[name]
    raw = bytearray(b"".join(content_of(tensor).chunks()))
    return torch.frombuffer(raw, dtype=_DTYPES[tensor.info.dtype]).reshape(tensor.info.shape)
