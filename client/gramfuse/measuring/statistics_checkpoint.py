"""What a checkpoint holds of unfinished statistics: the sums, and which example brought which rows."""

from typing import Any

import numpy as np
import torch

from gramfuse.measuring.checkpoint import Unfinished
from gramfuse.measuring.distinct import EXAMPLE_BYTES, DistinctRows
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.stream import Stream
from gramfuse_shared.contract.manifest import CollectorSettings
from gramfuse_shared.errors import StateError


def keep_statistics(statistics: Statistics) -> Unfinished:
    """Return what `restore_statistics` needs.

    Raises:
        StateError: nothing was measured, or no sum can be relied on any more.
    """
    if statistics.broken or statistics.settings is None:
        raise StateError(statistics.broken or "nothing was measured")
    statistics.settle()
    number = {readers: index for index, readers in enumerate(statistics.streams)}
    examples = statistics.distinct.examples
    profiles = {profile: index for index, profile in enumerate(dict.fromkeys(examples.values()))}
    document = {
        "base": statistics.base,
        "settings": statistics.settings.model_dump(mode="json"),
        "layouts": statistics.layouts,
        "streams": [
            {
                "readers": readers,
                "width": stream.width,
                "rows": stream.rows,
                "source": stream.source,
                "weights": None if stream.weights is None else stream.weights.tolist(),
            }
            for readers, stream in statistics.streams.items()
        ],
        "anonymous": [[number[readers], count] for readers, count in statistics.distinct.anonymous.items()],
        "profiles": [[[number[readers], count] for readers, count in sorted(profile)] for profile in profiles],
    }
    tensors = {f"stream.{index}": stream.gram for index, stream in enumerate(statistics.streams.values())}
    tensors["examples"] = torch.from_numpy(np.frombuffer(bytearray(b"".join(examples)), dtype=np.uint8))
    tensors["profile_of"] = torch.tensor([profiles[profile] for profile in examples.values()], dtype=torch.int32)
    return Unfinished(document, tensors)


def restore_statistics(kept: Unfinished) -> Statistics:
    """Return the statistics that were kept."""
    document: dict[str, Any] = dict(kept.document)
    streams = {
        tuple(known["readers"]): Stream.of(
            known["width"],
            kept.tensors[f"stream.{index}"],
            rows=known["rows"],
            source=known["source"],
            weights=None if known["weights"] is None else torch.tensor(known["weights"], dtype=torch.float64),
        )
        for index, known in enumerate(document["streams"])
    }
    readers = list(streams)
    profiles = [frozenset((readers[index], count) for index, count in profile) for profile in document["profiles"]]
    hashes, numbers = kept.tensors["examples"].numpy().tobytes(), kept.tensors["profile_of"].tolist()
    distinct = DistinctRows(
        {
            hashes[place * EXAMPLE_BYTES : (place + 1) * EXAMPLE_BYTES]: profiles[profile]
            for place, profile in enumerate(numbers)
        },
        {readers[index]: count for index, count in document["anonymous"]},
    )
    return Statistics(
        streams,
        layouts=document["layouts"],
        distinct=distinct,
        settings=CollectorSettings.model_validate(document["settings"]),
        base=document["base"],
    )
