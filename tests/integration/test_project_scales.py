"""A project's scales file, from the coordinator's disk over every check to a participant's home."""

import json
from pathlib import Path

import httpx
import pytest

from gramfuse.contributing.base_model import build_base_manifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    DigestMismatchError,
    NotFoundError,
    PolicyViolationError,
)
from support.client_models import tap, write_model
from support.scales import scales_bytes, scales_metadata
from support.server_world import OPEN_POLICY, entry, make_base, problem
from support.worker_world import InProcessWorker

PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"
TAPS = (tap("encoder.layer.0.dense", "encoder.layer.0.dense.weight"),)


@pytest.fixture
def base(tmp_path) -> Path:
    return write_model(tmp_path / "base")


@pytest.fixture
def scales(base, tmp_path) -> Path:
    path = tmp_path / "measured.safetensors"
    path.write_bytes(scales_bytes(scales_metadata(build_base_manifest(base).content_digest(), TAPS)))
    return path


@pytest.fixture
def project(acme, globex, base, scales) -> str:
    with acme.client() as client:
        client.create_project("tweets", base=base, scales=scales)
        client.invite(PROJECT, "globex")
    return PROJECT


# --- from one home to the other --------------------------------------------------------------------------------------


def test_a_participant_has_the_coordinators_file_byte_for_byte_and_fetches_it_once(globex, project, scales):
    with globex.client() as client:
        assert client.policy(project).policy.scales == sha256_hex(scales.read_bytes())
        fetched = client.scales(project)
        assert fetched.read_bytes() == scales.read_bytes()
        assert fetched.is_relative_to(globex.home.path)
        globex.wire.requests.clear()
        assert client.scales(project) == fetched
    assert not [path for _, path in globex.wire.requests if "/files/" in path]


def test_a_file_that_was_damaged_at_home_is_fetched_anew(globex, project, scales):
    with globex.client() as client:
        fetched = client.scales(project)
        fetched.write_bytes(b"damaged" + fetched.read_bytes()[7:])
        assert client.scales(project).read_bytes() == scales.read_bytes()


class LyingWire(httpx.BaseTransport):
    """A server that sends other scales than the policy names."""

    def __init__(self, wire) -> None:
        self._wire = wire

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._wire.handle_request(request)
        content = b"".join(answer.stream)
        if request.url.path == PATH:
            document = json.loads(content)
            for file in document["files"]:
                file["sha256"] = "0" * 64 if file["name"] == "scales.safetensors" else file["sha256"]
            content = json.dumps(document).encode()
        return httpx.Response(answer.status_code, stream=httpx.ByteStream(content))


def test_scales_that_are_not_those_of_the_policy_are_not_fetched(globex, project):
    with globex.client(wire=LyingWire(globex.wire)) as client, pytest.raises(DigestMismatchError, match="its policy"):
        client.scales(project)


def test_a_project_without_scales_says_so(acme, base):
    with acme.client() as client:
        client.create_project("tweets", base=base)
        with pytest.raises(NotFoundError, match="project create --scales"):
            client.scales(PROJECT)


def test_creating_again_sends_nothing_and_with_other_scales_is_a_conflict(acme, base, project, scales, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(scales_bytes(scales_metadata(build_base_manifest(base).content_digest(), TAPS), value=0.5))
    with acme.client() as client:
        acme.wire.requests.clear()
        assert client.create_project("tweets", base=base, scales=scales).state == "ready"
        assert acme.wire.parts_sent() == []
        with pytest.raises(ConflictError, match="policy"):
            client.create_project("tweets", base=base, scales=other)


def test_scales_of_another_base_model_are_not_sent(acme, base, tmp_path):
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(scales_bytes(scales_metadata("0" * 64, TAPS)))
    with acme.client() as client, pytest.raises(ArchitectureMismatchError, match="another base model"):
        client.create_project("tweets", base=base, scales=odd)
    assert acme.wire.writes() == []


def test_a_policy_that_names_other_scales_than_are_given_is_not_sent(acme, base, scales):
    with acme.client() as client:
        for policy, given in ((Policy(scales="0" * 64), scales), (Policy(scales="0" * 64), None)):
            with pytest.raises(PolicyViolationError, match="leave `scales` out"):
                client.create_project("tweets", base=base, policy=policy, scales=given)


def test_the_base_model_is_pulled_without_the_scales(globex, project, base, tmp_path):
    with globex.client() as client:
        pulled = client.pull_base(project, tmp_path / "pulled")
    assert {path.name for path in pulled.iterdir()} == {path.name for path in base.iterdir()}


# --- the server's own checks -----------------------------------------------------------------------------------------


def create(world, raw: bytes) -> tuple[int, str]:
    """Create a project with these bytes as its scales, as a client that checks nothing would; return how it ends."""
    world.organization("acme")
    coordinator = world.coordinator("acme")
    made = make_base()
    scales = entry("scales.safetensors", raw)
    policy = OPEN_POLICY.model_copy(update={"scales": scales["sha256"]})
    document = {
        "base": made.manifest.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
        "scales": scales,
    }
    answer = coordinator.put(PATH, json=document)
    assert answer.status_code == 201, answer.text
    coordinator.put_files(f"{PATH}/base", answer.json(), {**made.files, "scales.safetensors": raw})
    sealed = coordinator.post(f"{PATH}/base/seal")
    return sealed.status_code, sealed.json().get("code", "")


def test_the_server_refuses_scales_of_another_base_model(world):
    assert create(world, scales_bytes(scales_metadata("0" * 64))) == (422, "architecture-mismatch")


def test_the_server_refuses_what_is_no_scales_file(world):
    honest = scales_bytes(scales_metadata(make_base().id))
    assert create(world, honest.replace(b"gramfuse/scales/1", b"gramfuse/scales/9")) == (422, "scales-malformed")


def test_a_worker_rejects_scales_that_nothing_can_be_divided_by_and_better_ones_may_follow(world, settings):
    raw = scales_bytes(scales_metadata(make_base().id), value=0.0)
    assert create(world, raw) == (200, "")
    worker = InProcessWorker(world, settings)
    assert worker.inspect_all() == ["rejected"]
    assert "above zero" in world.coordinator("acme").get(PATH).json()["reason"]
    assert create(world, scales_bytes(scales_metadata(make_base().id))) == (200, "")
    assert worker.inspect_all() == ["accepted"]
    seen = world.coordinator("acme").get(PATH).json()
    assert (seen["state"], seen["policy"]["version"]) == ("ready", 2)


def test_a_later_policy_keeps_the_scales_or_drops_them_but_names_no_others(world):
    raw = scales_bytes(scales_metadata(make_base().id))
    create(world, raw)
    world.accept_base(PROJECT)
    coordinator = world.coordinator("acme")
    digest = sha256_hex(raw)
    for version, named, status in ((2, "0" * 64, 409), (2, digest, 201), (3, None, 201), (4, digest, 201)):
        policy = OPEN_POLICY.model_copy(update={"scales": named, "minimum_cohort": version + 1})
        answer = coordinator.put_document(f"{PATH}/policies/{version}", policy)
        assert answer.status_code == status, answer.text
    world.project("globex")
    answer = world.coordinator("globex").put_document(
        "/v1/projects/globex.tweets/policies/2", OPEN_POLICY.model_copy(update={"scales": digest})
    )
    assert "created without a scales file" in problem(answer, 409, "conflict")["detail"]
