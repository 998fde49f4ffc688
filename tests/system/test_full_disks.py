"""Disks that are full: what could not be written is told, nothing half is shown, and with room all goes on."""

import functools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import gramfuse
from gramfuse_shared.errors import JobFailedError
from gramfuse_shared.limits import MIB
from support import tiny
from support.collaboration import begin, contribute, measure, tune
from support.deployment import Deployment, deployed, wait_until
from support.soundness import require_sound

RECIPE = gramfuse.Recipe(merge_method="regmean")
DISK_BYTES = 64 * MIB


class Disk:
    """A file system of its own, which can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)

    def fill(self) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(b"\0" * MIB):
                    pass
            except OSError:
                return

    def empty(self) -> None:
        (self.folder / "ballast").unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, Disk]]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk that is small enough to be filled")
    try:
        made = {name: Disk(tmp_path / name) for name in ("store", "scratch")}
    except subprocess.CalledProcessError:
        pytest.skip("this machine lets nobody mount a file system")
    yield made
    for disk in made.values():
        disk.unmount()


@pytest.fixture
def small(disks: dict[str, Disk], tmp_path: Path) -> Iterator[Deployment]:
    settings = {"blobs": (disks["store"].folder / "blobs").as_uri(), "scratch": str(disks["scratch"].folder / "own")}
    with deployed(tmp_path / "site", shard_bytes=str(MIB), part_bytes=str(MIB), **settings) as deployment:
        deployment.start_worker()
        yield deployment


def test_full_disks_are_told_and_with_room_everything_goes_on(small, disks):
    collaboration = begin(small, ["full-a", "full-b", "full-c"], functools.partial(tiny.write_base, hidden=128))
    acme, globex, _ = collaboration.desks
    push = ["contribution", "push", collaboration.project, "--model", "tuned", "--yes"]
    tune(globex, seed=9)
    measured = measure(globex)

    # the store, in an upload: what arrived stays, and the same push goes on
    disks["store"].fill()
    refused = globex.run(*push, "--statistics", str(measured))
    assert refused.returncode == 1
    assert "storage-full" in refused.stderr
    assert "its operator has to make room" in refused.stderr
    disks["store"].empty()

    # scratch, in an inspection: the upload waits, and is not to be sent again
    disks["scratch"].fill()
    pushing = globex.start(*push, "--statistics", str(measured))
    wait_until(lambda: "waiting for room" in small.log_text("worker"), seconds=60, what="the worker's notice")
    (item,) = globex.get(collaboration.path("/contributions"))["items"]
    assert item["state"] == "sealed"
    (waiting,) = small.workers
    waiting.send_signal(signal.SIGTERM)  # it need not wait for the room, and leaves the upload to the next
    assert waiting.wait(60) == 0
    small.start_worker()
    disks["scratch"].empty()
    _, errors = pushing.communicate(timeout=60)
    assert pushing.returncode == 0, errors
    contribute(collaboration)

    # both, in a merge: the job fails with the reason, publishes nothing, and a retry succeeds
    with acme.client() as client:
        for disk, code in (("scratch", "file-unwritable"), ("store", "storage-full")):
            disks[disk].fill()
            client.submit(collaboration.project, RECIPE, job=f"full-{disk}")
            with pytest.raises(JobFailedError, match=f"(no space left|make room).*{code}") as failed:
                client.wait(collaboration.project, f"full-{disk}", timeout=60)
            assert str(disks[disk].folder) not in failed.value.message
            assert acme.get(collaboration.path(f"/models/full-{disk}")) is None
            disks[disk].empty()
            client.retry(collaboration.project, f"full-{disk}")
            assert client.wait(collaboration.project, f"full-{disk}", timeout=60).state == "succeeded"
    require_sound(small)
