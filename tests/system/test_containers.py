"""What the images and the compose file promise of the processes, held against real ones: no container runs here."""

import json
import re
import subprocess

import pytest

from support import read_only
from support.checkout import REPOSITORY
from support.deployment import wait_until

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, flags=re.MULTILINE | re.DOTALL))

on_postgresql = pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)


def healthcheck(stage: str) -> list[str]:
    """The command by which an image of the Dockerfile is asked."""
    (command,) = re.findall(r"^HEALTHCHECK (?:[^\n]|\\\n)*?CMD (\[[^\n]*\])$", STAGES[stage], flags=re.MULTILINE)
    return json.loads(command)


def ask(deployment, command: list[str]) -> int:
    finished = subprocess.run(
        [*deployment.launcher, *command], env=deployment.environment, capture_output=True, timeout=60, check=False
    )
    return finished.returncode


@on_postgresql
def test_what_this_suite_does_on_postgresql_it_does_on_a_read_only_root(deployment):
    """Uploads, merges, interruptions: whatever else ran here wrote to blobs, scratch and a temporary folder alone."""
    if not deployment.launcher:
        pytest.skip("this machine gives no mount namespaces to this user")
    wait_until(
        lambda: deployment.as_operator("GET", "/v1/admin/overview")["workers_alive"], seconds=60, what="a worker"
    )
    server = deployment.folder / "server"
    writable = {str(server / "blobs"), str(server / "scratch"), str(deployment.folder / "moment")}
    for process in (deployment.api, *deployment.workers):
        assert set(read_only.writable_mounts(process.pid)) == writable
    for command in ("serve", "worker"):
        assert "Read-only file system" not in deployment.log_text(command)


@on_postgresql
def test_the_health_checks_of_the_images_ask_the_process_that_they_are_for(deployment):
    """That a worker which is gone is missed, and when: tests/integration/test_server_worker_health.py."""
    api = healthcheck("api")
    at_port = [word.replace(":8080/", f":{deployment.port}/") for word in api]
    assert at_port != api
    assert ask(deployment, at_port) == 0
    assert ask(deployment, [word.replace(":8080/", ":9/") for word in api]) != 0  # nobody listens there
    wait_until(lambda: ask(deployment, healthcheck("worker")) == 0, seconds=60, what="the worker's first sign of life")
