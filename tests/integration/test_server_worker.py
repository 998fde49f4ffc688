"""The worker as a process: from sealed uploads to a published model, take-over, draining."""

import signal
import time

import pytest

from worker_world import contribute, wait_for, worker_process

MEMBERS = ("acme", "globex", "initech")
JOB = "/v1/projects/acme.tweets/jobs/first"


@pytest.fixture
def sealed(world):
    """A project whose base is ready and whose members' contributions are sealed."""
    project = world.project(*MEMBERS)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    return project


def contribution_states(world):
    page = world.operator.get("/v1/admin/contributions").json()
    return {item["state"] for item in page["items"]}


def test_a_worker_accepts_contributions_merges_and_ends_on_sigterm(world, settings, sealed, tmp_path):
    coordinator = world.coordinator("acme")
    with worker_process(settings, tmp_path / "worker.log") as process:
        wait_for(lambda: contribution_states(world) == {"accepted"}, what="acceptance")
        answer = coordinator.put(JOB, json={"recipe": {"merge_method": "regmean"}})
        assert answer.status_code == 201, answer.text
        began = time.monotonic()
        wait_for(lambda: coordinator.get(JOB).json()["state"] not in {"queued", "running"}, what="the job's end")
        print(f"job took {time.monotonic() - began:.2f} s")
        assert coordinator.get(JOB).json()["state"] == "succeeded", coordinator.get(f"{JOB}/log").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    print((tmp_path / "worker.log").read_text())
