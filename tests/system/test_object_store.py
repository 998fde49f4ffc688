"""The story once more with the bytes in an S3 store: parts and files go there and come from there past the API, which
is killed in the middle; the worker reads tensors by ranges, and nothing lies elsewhere.
"""

import json
import re
from datetime import timedelta

import gramfuse
from gramfuse.progress import Progress
from gramfuse_shared.limits import MIB
from support import collaboration, tiny
from support.cable import HOST, cable_to, to_port
from support.deployment import Deployment, deployed, wait_until
from support.s3 import BUCKET, s3
from support.soundness import open_database_of, tasks_of, workers_of

ORGANIZATIONS = ("acme", "globex", "initech")
PROJECT = "acme.tweets"
LEASE = timedelta(seconds=2)


def test_with_s3_everything_lies_in_the_bucket_and_passes_the_api_by(tmp_path, monkeypatch):
    log = tmp_path / "s3.log"
    with s3(log) as variables, cable_to(to_port(int(variables["AWS_ENDPOINT"].rpartition(":")[2]))) as cable:
        variables["AWS_ENDPOINT"] = f"http://{HOST}:{cable.port}"
        for name, value in variables.items():
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
            push_while_the_api_is_killed(deployment, project)
            collaboration.contribute(project)  # what was sent already is not sent again
            with project.coordinator.client() as client:
                client.submit(PROJECT, gramfuse.Recipe(merge_method="regmean"), job="regmean-1")
                hang_in_the_middle(deployment, cable)
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
    # each part was put once, by an address for it alone, and models were read where they lie
    put = re.findall(
        rf"PUT /{BUCKET}/gramfuse/(uploads/\S+)\?\S*X-Amz-Signature=\S+ HTTP/1\.1\S* (\d+)", log.read_text()
    )
    assert {status for _, status in put} == {"200"}
    assert len({key for key, _ in put}) == len(put) > len(ORGANIZATIONS) * 3
    fetched = re.findall(rf"GET /{BUCKET}/gramfuse/(sha256/\w+)\?\S*X-Amz-Signature=", log.read_text())
    assert len(set(fetched)) > 3
    # tensors were read singly: the log tells 206 for a range, 200 for a whole object
    answers = re.findall(rf"GET /{BUCKET}/gramfuse/sha256/\S+ HTTP/1\.1\S* (\d+)", log.read_text())
    assert answers.count("206") > len(ORGANIZATIONS) * 10


def push_while_the_api_is_killed(deployment: Deployment, project: collaboration.Collaboration) -> None:
    """Push; the first byte that is on its way kills the API, which is started again. The push goes on by itself."""
    desk = project.coordinator
    collaboration.tune(desk, seed=1)
    measured = collaboration.measure(desk)
    killed: list[Progress] = []

    def kill_once(progress: Progress) -> None:
        if progress.stage == "upload" and progress.done_bytes and not killed:
            killed.append(progress)
            deployment.kill_api()
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


def hang_in_the_middle(deployment, cable):
    """Hold the store up in the middle of a merge for longer than a lease: neither worker takes the other for dead."""
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
        cable.release()
        wait_until(
            lambda: {task.state for task in tasks_of(database, "regmean-1").values()} == {"succeeded"},
            seconds=60, what="all tasks",
        )  # fmt: skip
        assert {task.executions for task in tasks_of(database, "regmean-1").values()} == {1}
    finally:
        database.close()
