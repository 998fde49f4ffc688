"""Processes killed at the worst moment: nothing is lost, nothing is sent or computed twice, nothing half is visible."""

import functools
import re
import signal
import subprocess
from pathlib import Path

from support import tiny
from support.collaboration import begin, contribute, tune
from support.deployment import kill, wait_until
from support.soundness import require_sound, require_whole_blobs, settings_of
from support.wire import Exchange, wire_to

# three megabytes a layer, so that a merge is many tasks and an upload many parts
WIDE = functools.partial(tiny.write_base, hidden=256, layers=6)
# two tensors of four megabytes, each a file by itself
LARGE_FILES = functools.partial(tiny.write_base, hidden=512, layers=1)


def _finished_files(log) -> list[str]:
    return [match[1] for line in log if (match := re.match(r"(\S+): .+ in [\d.]+ s$", line["message"]))]


def _begun_again(log) -> set[str]:
    return {match[1] for line in log if (match := re.match(r"(\S+) is begun again", line["message"]))}


def _weight_digests(desk, collaboration, model) -> dict[str, str]:
    files = desk.get(collaboration.path(f"/models/{model}"))["files"]
    return {file["name"]: file["sha256"] for file in files if file["name"].endswith(".safetensors")}


def _kill_in_merge(deployment, collaboration, job, victim, *, rescue) -> None:
    """Kill a worker when some shards are finished and others not; `rescue` sees to it that another one works."""
    acme, path = collaboration.coordinator, collaboration.path(f"/jobs/{job}")
    acme.gramfuse("job", "submit", collaboration.project, "--method", "regmean", "--id", job)
    wait_until(lambda: acme.get(path)["done_tasks"] >= 3, seconds=60, what="three finished shards", pause=0.005)
    kill(victim)
    assert acme.get(path)["state"] == "running", "the merge was over before its worker could be killed"
    finished_before = set(_finished_files(acme.get(path + "/log?limit=200")["items"]))
    assert len(finished_before) >= 3
    assert acme.get(collaboration.path(f"/models/{job}")) is None
    assert job not in [model["id"] for model in acme.get(collaboration.path("/models"))["items"]]
    require_whole_blobs(settings_of(deployment).blobs)

    rescue()
    done = acme.json("job", "wait", collaboration.project, job, "--timeout", "90")
    assert done["state"] == "succeeded"
    log = acme.get(path + "/log?limit=200")["items"]
    finished = _finished_files(log)
    assert len(finished) == len(set(finished)) == done["total_tasks"] > len(finished_before)
    assert not _begun_again(log) & finished_before
    require_whole_blobs(settings_of(deployment).blobs)


def test_a_merge_whose_worker_is_killed_is_finished_without_repeating_a_shard(deployment):
    collaboration = begin(deployment, ["kill-a", "kill-b", "kill-c"], WIDE)
    contribute(collaboration)
    acme = collaboration.coordinator

    (alone,) = deployment.workers
    _kill_in_merge(deployment, collaboration, "restarted", alone, rescue=deployment.start_worker)
    deployment.require_running()
    (victim,) = deployment.workers
    other = deployment.start_worker()
    wait_until(lambda: _workers_alive(deployment) >= 2, seconds=60, what="the second worker's start", pause=0.2)
    _kill_in_merge(deployment, collaboration, "taken-over", victim, rescue=lambda: None)
    assert other.poll() is None

    # and the same merge without any accident has the same bytes
    acme.gramfuse("job", "submit", collaboration.project, "--method", "regmean", "--id", "undisturbed", "--wait")
    restarted, taken_over, undisturbed = (
        _weight_digests(acme, collaboration, job) for job in ("restarted", "taken-over", "undisturbed")
    )
    assert restarted == taken_over == undisturbed
    acme.gramfuse("model", "pull", collaboration.project, "taken-over", "merged")
    acme.gramfuse("model", "verify", "merged")
    require_sound(deployment)


def _workers_alive(deployment) -> int:
    return deployment.as_operator("GET", "/v1/admin/overview")["workers_alive"]


def test_after_the_api_was_killed_in_an_upload_push_sends_only_what_is_missing(deployment):
    with wire_to(lambda: deployment.port) as wire:
        collaboration = begin(deployment, ["upload-a", "upload-b"], WIDE, url=wire.url)
        desk = collaboration.desks[1]
        tune(desk, seed=1)
        push = ["contribution", "push", collaboration.project, "--model", "tuned", "--yes"]
        wire.forget()

        def kill_the_api(exchange: Exchange) -> None:
            if "/parts/" in exchange.path and len(wire.of("PUT", "/parts/")) == 6:
                deployment.kill_api()

        wire.before_request = kill_the_api
        pushing = desk.start(*push)
        wait_until(lambda: deployment.api.poll() is not None, seconds=60, what="the API's end")
        pushing.send_signal(signal.SIGINT)  # it would go on trying for half a minute
        _, errors = pushing.communicate(timeout=60)
        assert pushing.returncode == 130, errors
        arrived = {e.path for e in wire.of("PUT", "/parts/") if e.status == 201}
        assert arrived

        deployment.start_api()
        (begun,) = desk.get(collaboration.path("/contributions"))["items"]
        assert begun["state"] == "open"
        listed = {
            f"{collaboration.path('/contributions')}/{begun['id']}/files/{file['name']}/parts/{part['number']}"
            for file in begun["files"]
            for part in desk.get(f"{collaboration.path('/contributions')}/{begun['id']}/files/{file['name']}/parts")[
                "parts"
            ]
        }
        assert arrived <= listed  # what was acknowledged is there, and perhaps some whose answer was lost
        wire.forget()
        pushed = desk.json(*push)
        assert pushed["state"] == "accepted"
        sent = [e.path for e in wire.of("PUT", "/parts/")]
        assert not listed & set(sent)
        assert len(listed) + len(sent) == sum(file["part_count"] for file in pushed["files"])


def test_a_killed_pull_resumes_and_a_corrupted_byte_is_found_and_never_renamed(deployment):
    with wire_to(lambda: deployment.port) as wire:
        collaboration = begin(deployment, ["pull-a", "pull-b", "pull-c"], LARGE_FILES, url=wire.url)
        contribute(collaboration, statistics=False)
        acme, globex, _ = collaboration.desks
        acme.gramfuse("job", "submit", collaboration.project, "--method", "linear", "--id", "merged", "--wait")
        files = acme.get(collaboration.path("/models/merged"))["files"]
        largest = max(files, key=lambda file: file["bytes"])
        weights, size = f"/models/merged/files/{largest['name']}", largest["bytes"]
        pull = ["model", "pull", collaboration.project, "merged", "merged"]

        # killed in the middle of a file
        wire.forget()
        puller: list[subprocess.Popen[str]] = []

        def growing() -> list[Path]:
            return list((globex.folder / "merged.partial").glob("*.part"))

        def kill_the_client(exchange: Exchange, block: bytes) -> bytes:
            if exchange.path.endswith(weights) and exchange.answered_bytes > size // 2:
                wait_until(lambda: any(path.stat().st_size for path in growing()), seconds=30, what="bytes on the disk")
                kill(puller[0])
            return block

        wire.change_answer = kill_the_client
        puller.append(globex.start(*pull))
        puller[0].communicate(timeout=60)
        assert puller[0].returncode == -signal.SIGKILL
        assert not (globex.folder / "merged").exists()
        whole = {e.path.rpartition("/")[2] for e in wire.of("GET", "/files/") if not e.path.endswith(weights)}

        # resumed, but on the way a byte changes
        wire.forget()

        def corrupt(exchange: Exchange, block: bytes) -> bytes:
            begins = exchange.path.endswith(weights) and exchange.answered_bytes == 0
            return bytes([block[0] ^ 1]) + block[1:] if begins else block

        wire.change_answer = corrupt
        found = globex.run(*pull)
        assert found.returncode == 1
        assert "digest-mismatch" in found.stderr
        assert largest["name"] in found.stderr
        assert not (globex.folder / "merged").exists()
        (resumed,) = wire.of("GET", weights)
        assert resumed.range is not None
        begun_at = int(resumed.range.removeprefix("bytes=").removesuffix("-"))
        assert 0 < begun_at < size
        assert resumed.answered_bytes == size - begun_at

        # undisturbed: the damaged file comes anew, none that was whole comes again
        wire.forget()
        globex.gramfuse(*pull)
        assert [e.range for e in wire.of("GET", weights)] == [None]
        assert not whole & {e.path.rpartition("/")[2] for e in wire.of("GET", "/files/")}
        globex.gramfuse("model", "verify", "merged")
