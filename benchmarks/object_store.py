"""The merge's memory where the bytes lie in an object store, read by ranges: moto stands in for S3."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import merging
import obstore
import torch
from timing import Effort

from gramfuse_server.blobs import Blobs, blob_key, open_blobs
from gramfuse_server.merging.inputs import BlobSource
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.statistics_file import parse_statistics_metadata
from gramfuse_shared.merging.execution import MemberReader, execute_task
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.streaming import TensorFile
from support.s3 import BUCKET, s3

URL = f"s3://{BUCKET}/bench"
FILES = ("model.safetensors", "statistics.safetensors")


def measure_memory(folder: Path, effort: Effort) -> dict[str, float]:
    """Return the peak of resident memory above that after the imports, MB, each in a process of its own."""
    size = {"width": 48, "layers": 1} if effort.is_smoke else {"width": merging.WIDTH, "layers": 1}
    found = {}
    with s3(folder / "s3.log") as variables:
        os.environ |= variables
        blobs = open_blobs(URL)
        members = [_put(blobs, member) for member in merging.write_members(folder, 8, **size)]
        for count in (2, 8):
            command = [sys.executable, __file__, str(folder / "merged.safetensors"), json.dumps(members[:count])]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this file
            found[f"n{count}"] = json.loads(ran.stdout)
        for name in variables:
            del os.environ[name]
    return found


def merge(blobs: Blobs, members: list[Any], target: Path) -> None:
    """Merge contributions given as [[digest, bytes] of the weights, of the statistics], as a worker would."""
    planned, readers = [], {}
    for weights_blob, statistics_blob in members:
        weights, statistics = (
            TensorFile.open(BlobSource(blobs, digest, size)) for digest, size in (weights_blob, statistics_blob)
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
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # what the libraries allocate at their first use
    opened = open_blobs(URL)
    before = merging.memory_mb("VmRSS")
    merge(opened, members, target)
    print(json.dumps(merging.memory_mb("VmHWM") - before))
