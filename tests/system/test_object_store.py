"""The story once more with the bytes in an S3 store: the worker reads tensors by ranges, and nothing lies elsewhere."""

import json
import re

import gramfuse
from gramfuse_shared.limits import MIB
from support import collaboration, tiny
from support.deployment import deployed
from support.s3 import BUCKET, s3

ORGANIZATIONS = ("acme", "globex", "initech")
PROJECT = "acme.tweets"


def test_with_s3_everything_lies_in_the_bucket_and_is_read_by_ranges(tmp_path, monkeypatch):
    log = tmp_path / "s3.log"
    with s3(log) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        blobs = f"s3://{BUCKET}/gramfuse"
        with deployed(tmp_path / "site", blobs=blobs, shard_bytes=str(MIB), part_bytes=str(MIB)) as deployment:
            deployment.start_worker()
            project = collaboration.begin(deployment, ORGANIZATIONS, lambda folder: tiny.write_base(folder, hidden=128))
            collaboration.contribute(project)
            with project.coordinator.client() as client:
                client.submit(PROJECT, gramfuse.Recipe(merge_method="regmean"), job="regmean-1")
                job = client.wait(PROJECT, "regmean-1", timeout=120)
                assert (job.state, job.total_tasks > 1) == ("succeeded", True)
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
