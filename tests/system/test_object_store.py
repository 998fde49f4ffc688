"""The story once more with the bytes in an S3 store: the worker reads tensors by ranges, and nothing lies elsewhere."""

import json
import re
from datetime import timedelta

import gramfuse
from gramfuse_shared.limits import MIB
from support import collaboration, tiny
from support.cable import HOST, cable_to, to_port
from support.deployment import deployed, wait_until
from support.s3 import BUCKET, s3
from support.soundness import open_database_of, tasks_of, workers_of

ORGANIZATIONS = ("acme", "globex", "initech")
PROJECT = "acme.tweets"
LEASE = timedelta(seconds=2)


def test_with_s3_everything_lies_in_the_bucket_and_is_read_by_ranges(tmp_path, monkeypatch):
    log = tmp_path / "s3.log"
    with s3(log) as variables, cable_to(to_port(int(variables["AWS_ENDPOINT"].rpartition(":")[2]))) as cable:
        variables["AWS_ENDPOINT"] = f"http://{HOST}:{cable.port}"
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        blobs = f"s3://{BUCKET}/gramfuse"
        with deployed(
            tmp_path / "site", blobs=blobs, shard_bytes=str(MIB), part_bytes=str(MIB), worker_lease="PT2S"
        ) as deployment:
            deployment.start_worker()
            deployment.start_worker()
            project = collaboration.begin(deployment, ORGANIZATIONS, lambda folder: tiny.write_base(folder, hidden=128))
            collaboration.contribute(project)
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
            assert verdicts["blob store"] == verdicts["clock, blob store"] == verdicts["workers"] == "ok"

            # nothing but scratch and settings lies on the server's disk
            left = [path.name for path in (deployment.folder / "server").rglob("*") if path.is_file()]
            assert not [name for name in left if name.endswith(".safetensors") or re.fullmatch(r"[0-9a-f]{64}", name)]
    # tensors were read singly: the log tells 206 for a range, 200 for a whole object
    answers = re.findall(rf"GET /{BUCKET}/gramfuse/sha256/\S+ HTTP/1\.1\S* (\d+)", log.read_text())
    assert answers.count("206") > len(ORGANIZATIONS) * 10


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
