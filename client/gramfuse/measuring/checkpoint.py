"""Keeps an unfinished measurement on the local disk. It holds hashes of single examples and never travels."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from gramfuse.contributing.loading import read_header
from gramfuse.measuring.distinct import EXAMPLE_BYTES, DistinctRows
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.stream import Stream
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.manifest import CollectorSettings
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.errors import ConflictError, StateError, StatisticsMalformedError

_KEY: Final = "gramfuse.measuring.checkpoint"
_FORMAT: Final = "gramfuse/checkpoint/2"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A measurement after `batches` batches of the run that `run` identifies."""

    run: str
    batches: int
    statistics: Statistics


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside, then rename: the last whole checkpoint survives any interruption."""
    statistics = checkpoint.statistics
    if statistics.broken or statistics.settings is None:
        raise StateError(statistics.broken or "nothing was measured")
    statistics.settle()
    readers = list(statistics.streams)
    number = {names: index for index, names in enumerate(readers)}
    profiles = list(dict.fromkeys(statistics.distinct.examples.values()))
    profile_number = {profile: index for index, profile in enumerate(profiles)}
    examples = statistics.distinct.examples
    document = {
        "format": _FORMAT,
        "run": checkpoint.run,
        "batches": checkpoint.batches,
        "base": statistics.base,
        "settings": statistics.settings.model_dump(mode="json"),
        "layouts": statistics.layouts,
        "streams": [
            {
                "readers": names,
                "width": stream.width,
                "rows": stream.rows,
                "source": stream.source,
                "weights": None if stream.weights is None else stream.weights.tolist(),
            }
            for names, stream in statistics.streams.items()
        ],
        "anonymous": [[number[names], count] for names, count in statistics.distinct.anonymous.items()],
        "profiles": [[[number[names], count] for names, count in sorted(profile)] for profile in profiles],
    }
    header = format_header(
        [
            *(
                (f"stream.{index}", "F32", (stream.gram.numel(),))
                for index, stream in enumerate(statistics.streams.values())
            ),
            ("examples", "U8", (len(examples), EXAMPLE_BYTES)),
            ("profile_of", "I32", (len(examples),)),
        ],
        {_KEY: json.dumps(document)},
    )
    with written_whole(path) as stream:
        stream.write(header)
        for measured in statistics.streams.values():
            stream.write(measured.gram.cpu().numpy().astype("<f4", copy=False).data)
        stream.write(b"".join(examples))
        stream.write(np.array([profile_number[profile] for profile in examples.values()], dtype="<i4").tobytes())


def read_checkpoint(path: Path, run: str) -> Checkpoint | None:
    """Return the checkpoint of this run, or None where there is no file.

    Raises:
        ConflictError: the file belongs to another run.
        StatisticsMalformedError: it is not a checkpoint of this version.
    """
    if not path.exists():
        return None
    header = read_header(path)
    document: dict[str, Any] = json.loads(header.metadata.get(_KEY, "{}"))
    if document.get("format") != _FORMAT:
        msg = f"{path} is no checkpoint of this version of gramfuse; delete it to start anew"
        raise StatisticsMalformedError(msg)
    if document["run"] != run:
        msg = f"{path} belongs to a run with another model, other texts or settings; delete it to start anew"
        raise ConflictError(msg)
    with path.open("rb") as stream:
        content = {}
        for entry in header.tensors.values():
            stream.seek(entry.start)
            content[entry.name] = stream.read(entry.length)
    streams = {
        tuple(known["readers"]): Stream.of(
            known["width"],
            torch.frombuffer(bytearray(content[f"stream.{index}"]), dtype=torch.float32),
            rows=known["rows"],
            source=known["source"],
            weights=None if known["weights"] is None else torch.tensor(known["weights"], dtype=torch.float64),
        )
        for index, known in enumerate(document["streams"])
    }
    readers = list(streams)
    profiles = [frozenset((readers[index], count) for index, count in profile) for profile in document["profiles"]]
    hashes, numbers = content["examples"], np.frombuffer(content["profile_of"], dtype="<i4")
    distinct = DistinctRows(
        {
            hashes[index * EXAMPLE_BYTES : (index + 1) * EXAMPLE_BYTES]: profiles[profile]
            for index, profile in enumerate(numbers.tolist())
        },
        {readers[index]: count for index, count in document["anonymous"]},
    )
    return Checkpoint(
        run=run,
        batches=document["batches"],
        statistics=Statistics(
            streams,
            layouts=document["layouts"],
            distinct=distinct,
            settings=CollectorSettings.model_validate(document["settings"]),
            base=document["base"],
        ),
    )
