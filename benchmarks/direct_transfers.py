"""Parts and files past the API and through it, on loopback, the store a SeaweedFS: what the API is spared.

    PYTHONPATH=tests python benchmarks/direct_transfers.py [MEGABYTES]

Client, API and store share the machine, which a real deployment's do not. How much processor time the API takes says
what its machine is spared.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from transfer import write_base

from gramfuse.config import Endpoint, Token
from gramfuse.contributing.base_model import open_base_folder
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import DEFAULT_PARALLEL_PARTS, send_missing_parts
from gramfuse_shared.contract.http_api import Project, ProjectCreate
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.limits import DEFAULT_PART_BYTES
from support.deployment import Deployment, Desk, deployed
from support.s3 import BUCKET, s3

ROUNDS = 3


def measure(folder: Path, megabytes: int) -> None:
    """Print the medians."""
    base = write_base(folder / "base", megabytes * 2**20)
    with (
        s3(folder / "s3") as store,
        patch.dict(os.environ, store.variables),
        deployed(folder / "site", blobs=f"s3://{BUCKET}/x", direct_transfers="on") as deployment,
    ):
        deployment.start_worker()
        desk = deployment.desk("acme", role="coordinator")
        with desk.client() as client:
            client.create_project("pulled", base=base, policy=Policy())
        for name, through_server in (("past the API", False), ("through the API", True)):
            uploads, downloads = [], []
            for number in range(ROUNDS):
                with timed(deployment) as upload:
                    push(desk, base, f"{name[:4]}-{number}", through_server=through_server)
                os.environ["GRAMFUSE_THROUGH_SERVER"] = str(int(through_server))
                with timed(deployment) as download, desk.client() as client:
                    client.pull_base("acme.pulled", folder / f"{name}-{number}")
                uploads.append(upload)
                downloads.append(download)
            for what, taken in (("upload", uploads), ("download", downloads)):
                seconds = statistics.median(one["seconds"] for one in taken)
                api = statistics.median(one["api"] for one in taken)
                print(f"{what:9} {name:16} {megabytes / seconds:6.1f} MiB/s, the API's processor {api:5.2f} s")


@contextmanager
def timed(deployment: Deployment) -> Iterator[dict[str, float]]:
    """Yield what becomes the seconds that something took, and those of the API's processor."""
    taken: dict[str, float] = {}
    began, before = time.perf_counter(), processor_seconds(deployment)
    yield taken
    taken |= {"seconds": time.perf_counter() - began, "api": processor_seconds(deployment) - before}


def processor_seconds(deployment: Deployment) -> float:
    """What the API's process has used so far."""
    fields = Path(f"/proc/{cast('Any', deployment.api).pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def push(desk: Desk, base: Path, name: str, *, through_server: bool) -> None:
    """Open a project and send all of its base model, but for the digests that are taken before."""
    endpoint = Endpoint(desk.url, Token(desk.token), allow_http=False, through_server=through_server)
    with closing(Transport(endpoint)) as transport:
        folder, path = open_base_folder(base, part_bytes=DEFAULT_PART_BYTES), f"v1/projects/{desk.name}.{name}"
        body = ProjectCreate(base=folder.manifest, policy=Policy()).model_dump(mode="json")
        created = Project.parse(transport.call("PUT", path, json=body))
        send_missing_parts(transport, f"{path}/base", folder.files, created.files, parallel=DEFAULT_PARALLEL_PARTS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(scratch), int(sys.argv[1]) if len(sys.argv) > 1 else 64)
