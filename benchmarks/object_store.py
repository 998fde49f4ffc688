"""The merge's memory where the bytes lie in an object store, read by ranges: SeaweedFS."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import merging
import obstore
import torch
from timing import Effort

from gramfuse_server.blobs import Blobs, blob_key, open_blobs
from gramfuse_server.merging.blob_source import BlobSource
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.statistics_file import parse_statistics_metadata
from gramfuse_shared.merging.execution import MemberReader, execute_task
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.streaming import TensorFile
from support.s3 import BUCKET, find_weed, s3

URL = f"s3://{BUCKET}/bench"
FILES = ("model.safetensors", "statistics.safetensors")


def measure_memory(folder: Path, effort: Effort) -> dict[str, float]:
    """Return the peak of resident memory above that after the imports, MB, each in a process of its own.

    Nothing, where there is no SeaweedFS.
    """
    found: dict[str, float] = {}
    if find_weed() is None:
        return found
    with s3(folder / "s3") as store, patch.dict(os.environ, store.variables):
        blobs = open_blobs(URL)
        written = merging.write_members(folder, 8, **merging.size_of(effort, layers=1))
        members = [_put(blobs, member) for member in written]
        for count in (2, 8):
            target = str(folder / "merged.safetensors")
            found[f"n{count}"] = merging.peak_of(__file__, target, json.dumps(members[:count]))
    return found


def merge(blobs: Blobs, members: list[Any], target: Path) -> None:
    """Merge contributions given as [[digest, bytes] of the weights, of the statistics], as a worker would."""
    planned, readers = [], {}
    for weights_blob, statistics_blob in members:
        weights, statistics = (
            TensorFile.open(BlobSource(blobs, blob_key(digest), size))
            for digest, size in (weights_blob, statistics_blob)
        )
        tensors = {name: TensorInfo(name=name, dtype=t.dtype, shape=t.shape) for name, t in weights.tensors.items()}
        taps = parse_statistics_metadata(statistics.header).taps
        key = weights_blob[0]
        planned.append(Member(key=key, label=key[:8], weight=1.0, tensors=tensors, taps=taps))
        readers[key] = MemberReader(weights, statistics)
    plan = plan_merge(planned, None, Recipe(merge_method="regmean"))
    for task in plan.tasks:
        execute_task(plan, task.index, readers, None, target, device=torch.device("cpu"))


def _put(blobs: Blobs, member: Path) -> list[tuple[str, int]]:
    stored = []
    for name in FILES:
        path = member / name
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        obstore.put(blobs.store, blob_key(digest), path)
        stored.append((digest, path.stat().st_size))
    return stored


if __name__ == "__main__":
    target, members = Path(sys.argv[1]), json.loads(sys.argv[2])
    opened = open_blobs(URL)
    merging.print_peak(lambda: merge(opened, members, target))
