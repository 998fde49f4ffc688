"""The story once more with the bytes in an S3 store: parts and files go there and come from there past the API. API and
store are killed in the middle; the worker reads tensors by ranges, and nothing lies elsewhere.
"""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import gramfuse
from gramfuse.progress import Progress
from gramfuse.transfer.uploads import DEFAULT_PARALLEL_PARTS
from gramfuse_shared.limits import MIB
from support import collaboration, tiny
from support.cable import Cable, cable_to, to_port
from support.deployment import Deployment, deployed, wait_until
from support.s3 import BUCKET, Store, require_weed, s3, variables_to
from support.soundness import open_database_of, tasks_of, workers_of

ORGANIZATIONS = ("acme", "globex", "initech")
PROJECT = "acme.tweets"
LEASE = timedelta(seconds=2)
HEAD = re.compile(rb"(GET|PUT) (/\S+) HTTP/1\.1((?:\r\n[^\r\n]+)+)\r\n\r\n")


class Asked(NamedTuple):
    """What a request to the store began with."""

    method: bytes
    path: bytes
    headers: bytes

    @property
    def key(self) -> bytes:
        return self.path.partition(b"?")[0]


def overhearing(connect: Callable[[], socket.socket], asked: list[Asked]) -> Callable[[], socket.socket]:
    """Connect as `connect` does, and note what requests are sent."""

    class Overheard(socket.socket):
        _tail = b""

        def sendall(self, content: bytes) -> None:
            heard, end = self._tail + content, 0
            for found in HEAD.finditer(heard):
                asked.append(Asked(*found.groups()))
                end = found.end()
            self._tail = heard[max(end, len(heard) - 8192) :]  # a head may come in two pieces
            super().sendall(content)

    return lambda: Overheard(fileno=connect().detach())


def test_with_s3_everything_lies_in_the_bucket_and_passes_the_api_by(tmp_path, monkeypatch):
    require_weed()
    asked: list[Asked] = []
    with s3(tmp_path / "s3") as store, cable_to(overhearing(to_port(store.port), asked)) as cable:
        for name, value in variables_to(cable.port).items():
            monkeypatch.setenv(name, value)
        blobs = f"s3://{BUCKET}/gramfuse"
        settings = {
            "blobs": blobs,
            "direct_transfers": "on",
            "shard_bytes": str(MIB),
            "part_bytes": str(MIB),
            "worker_lease": "PT2S",
        }
        with deployed(tmp_path / "site", **settings) as deployment:
            deployment.start_worker()
            deployment.start_worker()
            project = collaboration.begin(deployment, ORGANIZATIONS, lambda folder: tiny.write_base(folder, hidden=128))
            push_while_api_and_store_are_killed(deployment, store, project)
            collaboration.contribute(project)  # what was sent already is not sent again
            with project.coordinator.client() as client:
                client.submit(PROJECT, gramfuse.Recipe(merge_method="regmean"), job="regmean-1")
                hang_in_the_middle(deployment, store, cable)
                job = client.wait(PROJECT, "regmean-1", timeout=120)
                assert (job.state, job.total_tasks > 1) == ("succeeded", True)
                assert "took over" not in deployment.log_text("worker")
                merged = client.pull(PROJECT, "regmean-1", tmp_path / "merged")
            gramfuse.verify(merged, home=client.home)

            told = json.loads(deployment.operator("doctor", "--format", "json"))["checks"]
            verdicts = {check["name"]: check["verdict"] for check in told}
            named = ("blob store", "clock, blob store", "workers", "direct transfers")
            assert {verdicts[name] for name in named} == {"ok"}

            # nothing but scratch and settings lies on the server's disk
            left = [path.name for path in (deployment.folder / "server").rglob("*") if path.is_file()]
            assert not [name for name in left if name.endswith(".safetensors") or re.fullmatch(r"[0-9a-f]{64}", name)]
            served = deployment.log_text("serve")
            assert "/parts/{number} status=202" in served
            assert not re.search(r"method=PUT \S+ \S+parts/\{number\}", served)
    # each part was put by an address for it alone, those that were on their way at the kill once more
    signed = [each for each in asked if b"X-Amz-Signature=" in each.path]
    put = Counter(each.key for each in signed if each.method == b"PUT" and b"/uploads/" in each.key)
    assert len(put) > len(ORGANIZATIONS) * 3
    assert put.total() - len(put) <= DEFAULT_PARALLEL_PARTS
    # models were read where they lie, and tensors singly
    assert len({each.key for each in signed if each.method == b"GET"}) > 3
    read = [each for each in asked if each not in signed and each.method == b"GET" and b"/sha256/" in each.key]
    assert sum(b"\r\nrange:" in each.headers.lower() for each in read) > len(ORGANIZATIONS) * 10


def push_while_api_and_store_are_killed(
    deployment: Deployment, store: Store, project: collaboration.Collaboration
) -> None:
    """Push; the first part that has arrived kills both, which are started again. The push goes on by itself."""
    desk = project.coordinator
    collaboration.tune(desk, seed=1)
    measured = collaboration.measure(desk)
    killed: list[Progress] = []

    def kill_once(progress: Progress) -> None:
        if progress.stage == "upload" and progress.done_bytes and not killed:
            killed.append(progress)
            deployment.kill_api()
            store.kill()
            store.start()
            deployment.start_api()

    with desk.client() as client:
        pushed = client.push(
            project.project,
            model=desk.folder / "tuned",
            statistics=measured,
            confirm=lambda _: True,
            on_progress=kill_once,
        )
    assert (pushed.state, len(killed)) == ("accepted", 1)


def hang_in_the_middle(deployment: Deployment, store: Store, cable: Cable) -> None:
    """Hold the store up in the middle of a merge for longer than a lease, then kill it; it is back six seconds later.

    Neither worker takes the other for dead, and nothing is lost.
    """
    database = open_database_of(deployment)
    try:
        wait_until(
            lambda: any(task.state == "running" for task in tasks_of(database, "regmean-1").values()),
            seconds=60, what="a task under way", pause=0.005,
        )  # fmt: skip
        cable.cut()
        before = {name: row.heartbeat_at for name, row in workers_of(database).items()}
        wait_until(
            lambda: all(row.heartbeat_at - before[name] > 1.5 * LEASE for name, row in workers_of(database).items()),
            seconds=60, what="signs of life", pause=0.1,
        )  # fmt: skip
        assert {task.state for task in tasks_of(database, "regmean-1").values()} != {"succeeded"}
        store.kill()
        cable.mend()  # from here on nobody listens
        time.sleep(4)
        store.start()
        wait_until(
            lambda: {task.state for task in tasks_of(database, "regmean-1").values()} == {"succeeded"},
            seconds=60, what="all tasks",
        )  # fmt: skip
        assert {task.executions for task in tasks_of(database, "regmean-1").values()} == {1}
    finally:
        database.close()
