"""Writes a model with its units in the order of a matching: other bytes, the same function. `gramfuse.align_model`."""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gramfuse.companions import ALIGNMENT_NOTE_FILE, companion_files
from gramfuse.complete_folder import complete_folder
from gramfuse.contributing.loading import INDEX_FILE, weight_file_names
from gramfuse.matching.groups import Place
from gramfuse.matching.matching import Matching
from gramfuse_shared.errors import ConflictError
from gramfuse_shared.version import __version__


def align_model(matching: Matching, out: str | Path) -> Path:
    """Write the matched model's folder anew with its units in the order that fits best.

    It computes what it did before, up to rounding, and `from_pretrained` loads it. Statistics are not taken along: they
    are of features in the old order, so they have to be collected again from the new folder. One weight file at a time
    is in memory. The folder appears when it is complete.

    Raises:
        ConflictError: `out` exists and is not empty.
        FileUnwritableError: the disk is full or not writable.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        msg = f"{target} exists and is not empty; choose another folder"
        raise ConflictError(msg)
    moves: dict[str, list[tuple[Place, torch.Tensor]]] = defaultdict(list)
    for group in matching.groups:
        for place, order in group.moves.items():
            moves[place.tensor].append((place, order))
    with complete_folder(target) as beside:
        for name in weight_file_names(matching.model):
            with safe_open(matching.model / name, framework="pt") as file:
                tensors = {key: _moved(file.get_tensor(key), moves[key]) for key in file.keys()}  # noqa: SIM118 - no mapping
                metadata = file.metadata() or {"format": "pt"}
            save_file(tensors, beside / name, metadata=metadata)
        companions = companion_files(matching.model)
        index = matching.model / INDEX_FILE
        for path in [*companions, *([index] if index.is_file() else [])]:
            shutil.copyfile(path, beside / path.name)
        note = {
            "gramfuse": __version__,
            "aligned_to": matching.other.name,
            "by": matching.by,
            "moved": [group.name for group in matching.groups if not group.identity_is_best],
        }
        (beside / ALIGNMENT_NOTE_FILE).write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return target


def _moved(tensor: torch.Tensor, moves: list[tuple[Place, torch.Tensor]]) -> torch.Tensor:
    for place, order in moves:
        part = tensor.narrow(place.axis, place.start, place.length).index_select(place.axis, order)
        tensor = tensor.clone()
        tensor.narrow(place.axis, place.start, place.length).copy_(part)
    return tensor.contiguous()
