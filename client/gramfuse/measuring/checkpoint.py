"""Keeps an unfinished measurement on the local disk. The file may hold hashes of single examples, and the seed of their
labels, and never travels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from gramfuse.contributing.loading import read_header
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.safetensors_header import Header, format_header
from gramfuse_shared.errors import ConflictError, StatisticsMalformedError

_KEY: Final = "gramfuse.measuring.checkpoint"
_FORMAT: Final = "gramfuse/checkpoint/4"
_DTYPES: Final = {torch.float32: "F32", torch.uint8: "U8", torch.int32: "I32"}
_TORCH_DTYPES: Final = {name: dtype for dtype, name in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What has been measured so far: JSON values, and tensors (float32, uint8 or int32) on any device."""

    document: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A measurement after `batches` batches of the run that `run` identifies; `seed` begins its drawing, if any."""

    run: str
    batches: int
    measured: Unfinished
    seed: int | None = None


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside, then rename: the last whole checkpoint survives any interruption.

    Raises:
        FileUnwritableError: the folder cannot be written.
    """
    measured = checkpoint.measured
    document = {
        "format": _FORMAT,
        "run": checkpoint.run,
        "batches": checkpoint.batches,
        "seed": checkpoint.seed,
        "measured": measured.document,
    }
    layout = [(name, _DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in measured.tensors.items()]
    with written_whole(path) as stream:
        stream.write(format_header(layout, {_KEY: json.dumps(document)}))
        for tensor in measured.tensors.values():
            stream.write(tensor.detach().cpu().contiguous().numpy().data)


def read_checkpoint(path: Path, run: str) -> Checkpoint | None:
    """Return the checkpoint of this run, its tensors on the CPU, or None where there is no file.

    Raises:
        ConflictError: the file belongs to another run.
        StatisticsMalformedError: it is not a checkpoint of this version.
    """
    if not path.exists():
        return None
    header, document = _read_document(path)
    if document["run"] != run:
        msg = f"{path} belongs to a run with another model, other texts or settings; delete it to start anew"
        raise ConflictError(msg)
    tensors = {}
    with path.open("rb") as stream:
        for entry in header.tensors.values():
            stream.seek(entry.start)
            content, dtype = bytearray(stream.read(entry.length)), _TORCH_DTYPES[entry.dtype]
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            tensors[entry.name] = flat.reshape(entry.shape)
    return Checkpoint(run, document["batches"], Unfinished(document["measured"], tensors), document["seed"])


def read_seed(path: Path) -> int | None:
    """Return the seed of whatever run a checkpoint is of; None where there is no file, or nothing is drawn.

    Raises:
        StatisticsMalformedError: it is not a checkpoint of this version.
    """
    seed: int | None = _read_document(path)[1]["seed"] if path.exists() else None
    return seed


def _read_document(path: Path) -> tuple[Header, dict[str, Any]]:
    header = read_header(path)
    document: dict[str, Any] = json.loads(header.metadata.get(_KEY, "{}"))
    if document.get("format") != _FORMAT:
        msg = f"{path} is no checkpoint of this version of gramfuse; delete it to start anew"
        raise StatisticsMalformedError(msg)
    return header, document
