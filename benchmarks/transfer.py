"""Uploads and downloads through a real server on loopback, over the same bytes read, hashed and written locally.

Timed of an upload are the parts, which the server hashes and stores; of a download the stream, hashed, written, synced.
The local reference reads, hashes and writes in one thread and does not sync. A file of the same size is written and
deleted before each timing: on a virtual machine fresh pages cost up to 0.2 s for 256 MB, and whoever comes first pays.
"""

import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from timing import Effort

from gramfuse.config import Endpoint, Token
from gramfuse.contributing.base_model import open_base_folder
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import DEFAULT_PARALLEL_PARTS, send_missing_parts
from gramfuse_shared.contract.http_api import Project, ProjectCreate
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.limits import DEFAULT_PART_BYTES
from support.deployment import Desk, deployed

_MIB = 2**20


def measure(folder: Path, effort: Effort) -> dict[str, Any]:
    """Return local ÷ upload and local ÷ download: 1 is as fast as local."""
    size = (8 if effort.is_smoke else 256) * _MIB
    base = write_base(folder / "base", size)
    seconds: dict[str, list[float]] = {"local": [], "upload": [], "download": []}
    with deployed(folder / "site") as deployment:
        deployment.start_worker()
        desk = deployment.desk("acme", role="coordinator")
        with desk.client() as client:
            client.create_project("pulled", base=base, policy=Policy())
        for number in range(effort.rounds + 1):
            for name, run in (
                ("local", lambda: _local(base / "model.safetensors", folder / "copy")),
                ("upload", lambda number=number: _upload(desk, base, number)),
                ("download", lambda number=number: _download(desk, folder / f"pulled-{number}")),
            ):
                _warm_pages(folder, size)
                taken = run()
                if number:
                    seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "upload_over_local_write_and_hash": medians["local"] / medians["upload"],
        "download_over_local_write_and_hash": medians["local"] / medians["download"],
        "megabytes": size / 1e6,
        "seconds": medians,
        "reference": "the same bytes read, hashed (SHA-256) and written in one thread, not synced",
    }


def write_base(folder: Path, size: int) -> Path:
    """Write a base model of about so many bytes."""
    folder.mkdir(parents=True)
    header = format_header([("encoder.weight", "BF16", (size // 2048, 1024))], {"format": "pt"})
    (folder / "model.safetensors").write_bytes(header + b"\x80\x3f" * (size // 2))  # ones
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 31}))
    return folder


def _warm_pages(folder: Path, size: int) -> None:
    block = os.urandom(_MIB)
    with (folder / "warm").open("wb") as file:
        for _ in range(size // _MIB):
            file.write(block)
    (folder / "warm").unlink()


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _local(source: Path, target: Path) -> float:
    def copy() -> None:
        digest = hashlib.sha256()
        with source.open("rb") as reader, target.open("wb") as writer:
            while block := reader.read(_MIB):
                digest.update(block)
                writer.write(block)
        digest.hexdigest()

    taken = _timed(copy)
    target.unlink()
    return taken


def _upload(desk: Desk, base: Path, number: int) -> float:
    with closing(Transport(Endpoint(desk.url, Token(desk.token), allow_http=True))) as transport:
        folder = open_base_folder(base, part_bytes=DEFAULT_PART_BYTES)  # digests parts, as the client does
        path = f"v1/projects/{desk.name}.upload-{number}"
        body = ProjectCreate(base=folder.manifest, policy=Policy()).model_dump(mode="json")
        created = Project.parse(transport.call("PUT", path, json=body))
        return _timed(
            lambda: send_missing_parts(
                transport, f"{path}/base", folder.files, created.files, parallel=DEFAULT_PARALLEL_PARTS
            )
        )


def _download(desk: Desk, target: Path) -> float:
    with desk.client() as client:
        client.whoami()
        taken = _timed(lambda: client.pull_base("acme.pulled", target))
    shutil.rmtree(target)
    return taken
