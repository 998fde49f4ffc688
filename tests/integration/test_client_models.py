"""The SDK against the real API and a real merge: submit, watch, pull, resume, and every lie that a pull finds out."""

import json
from pathlib import Path

import httpx
import pytest

from gramfuse import pinning
from gramfuse.transfer.downloads import partial_folder
from gramfuse.verification import verify
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import (
    CancelledError,
    ConflictError,
    DigestMismatchError,
    JobFailedError,
    ReceiptInvalidError,
    RoleRequiredError,
    StateError,
    TransportError,
)
from support.client_world import URL, Site
from support.server_world import World
from support.worker_world import InProcessWorker, be_ready

MEMBERS = ("acme", "globex", "initech")
PROJECT = "acme.tweets"
MODEL = "regmean-1"
REGMEAN = Recipe(merge_method="regmean")


def begin_merged(world, settings):
    """Accepted contributions of everybody, and what RegMean made of them."""
    be_ready(world, settings)
    recipe = REGMEAN.model_dump(mode="json", exclude_unset=True)
    submitted = world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{MODEL}", json={"recipe": recipe})
    assert submitted.status_code == 201, submitted.text
    InProcessWorker(world, settings).run(PROJECT, MODEL)


@pytest.fixture
def server(request, begun):
    """A world and its settings; with a merged model, for those who ask for that."""
    return begun(begin_merged if "model" in request.fixturenames else be_ready)


@pytest.fixture
def world(server) -> World:
    return server[0]


@pytest.fixture
def worker(server) -> InProcessWorker:
    return InProcessWorker(*server)


@pytest.fixture
def project() -> str:
    """The server's, with an accepted contribution of each member."""
    return PROJECT


@pytest.fixture
def model() -> str:
    return MODEL


class TamperingWire(httpx.BaseTransport):
    """A server, or somebody in between, that alters an answer."""

    def __init__(self, wire, path_ends: str, alter) -> None:
        self._wire, self._path_ends, self._alter = wire, path_ends, alter

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._wire.handle_request(request)
        if request.method != "GET" or not request.url.path.endswith(self._path_ends):
            return answer
        content = self._alter(b"".join(answer.stream))
        headers = {key: value for key, value in answer.headers.items() if key != "content-length"}
        return httpx.Response(answer.status_code, headers=headers, stream=httpx.ByteStream(content))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def file_requests(site: Site) -> list[str]:
    return [path for _, path in site.wire.requests if f"/models/{MODEL}/files/" in path]


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_is_submitted_once_watched_to_its_end_and_leaves_a_history(acme, globex, worker, project):
    with acme.client() as client:
        first = client.submit("tweets", REGMEAN, job=MODEL)
        assert client.submit("tweets", REGMEAN, job=MODEL).created_at == first.created_at
        with pytest.raises(ConflictError):
            client.submit("tweets", Recipe(merge_method="linear"), job=MODEL)
    worker.run(project, MODEL)
    seen = []
    with globex.client() as client:
        done = client.wait("tweets", MODEL, on_progress=seen.append)
        assert (done.state, done.progress) == ("succeeded", 1.0)
        assert seen[-1] == done
        assert [job.id for job in client.jobs("tweets")] == [MODEL]
        assert client.logs("tweets", MODEL)[0].message.startswith("submitted")


def test_a_job_without_an_id_gets_one_that_says_its_method(acme, project):
    with acme.client() as client:
        assert client.submit(project, REGMEAN).id.startswith("regmean-")


def test_a_cancelled_job_is_an_error_of_its_own_and_can_be_retried(acme, worker, project):
    with acme.client() as client:
        client.submit(project, REGMEAN, job=MODEL)
        assert client.cancel(project, MODEL).state == "cancelled"
        with pytest.raises(CancelledError, match="was cancelled"):
            client.wait(project, MODEL)
        assert client.retry(project, MODEL).attempt == 2
        worker.run(project, MODEL)
        assert client.wait(project, MODEL).attempt == 2


def test_a_failed_job_is_an_error_with_the_servers_reason(acme, project, world):
    from gramfuse_server.database import transaction  # noqa: PLC0415
    from gramfuse_server.tables import JobRow  # noqa: PLC0415

    with acme.client() as client:
        client.submit(project, REGMEAN, job=MODEL)
        with transaction(world.services.database) as session:
            row = session.get_one(JobRow, (project, MODEL))
            row.state, row.error_code, row.error_message = "failed", "weights-invalid", "NaN in encoder.query.weight"
        with pytest.raises(JobFailedError, match=r"NaN in encoder\.query\.weight \[weights-invalid\]") as caught:
            client.wait(project, MODEL)
    assert caught.value.facts["error"]["code"] == "weights-invalid"


def test_only_the_coordinator_submits(globex, project):
    with globex.client() as client, pytest.raises(RoleRequiredError):
        client.submit(project, REGMEAN)


# --- pull ------------------------------------------------------------------------------------------------------------


def test_a_pulled_model_verifies_offline_with_the_key_pinned_at_first_use(globex, project, model, tmp_path):
    with globex.client() as client:
        folder = client.pull("tweets", model, tmp_path / "merged")
        assert [found.id for found in client.models("tweets")] == [model]
    found = verify(folder, home=globex.home)
    assert (found.receipt.model, found.signer) == (model, URL)
    assert {member.organization for member in found.receipt.contributions} == set(MEMBERS)
    assert {"config.json", "tokenizer.json", "model.safetensors", "receipt.json"} <= set(files_of(folder))


def test_pulling_again_fetches_nothing_and_reports_what_was_damaged_meanwhile(globex, project, model, tmp_path):
    with globex.client() as client:
        folder = client.pull(project, model, tmp_path / "merged")
        globex.wire.requests.clear()
        client.pull(project, model, folder)
        assert file_requests(globex) == []
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "model.safetensors").write_bytes(weights)
        with pytest.raises(DigestMismatchError, match="was altered"):
            client.pull(project, model, folder)


def test_a_pull_that_was_cut_off_shows_nothing_and_fetches_only_the_rest_when_run_again(
    globex, project, model, tmp_path
):
    folder, cut = tmp_path / "merged", 700
    globex.wire.breaks_at = lambda request: "Range" in request.headers  # the connection is gone for good
    cut_off = globex.client(wire=TamperingWire(globex.wire, "files/model.safetensors", lambda content: content[:cut]))
    with cut_off, pytest.raises(TransportError, match="connection reset"):
        cut_off.pull(project, model, folder)
    assert not folder.exists()
    done = {path.name for path in partial_folder(folder).iterdir() if path.suffix != ".part"}
    fetched: dict[str, str | None] = {}

    def note_range(request: httpx.Request) -> bool:
        fetched[request.url.path.rpartition("/")[2]] = request.headers.get("Range")
        return False

    globex.wire.breaks_at = note_range
    with globex.client() as client:
        client.pull(project, model, folder)
    assert fetched["model.safetensors"] == f"bytes={cut}-"
    assert done
    assert done.isdisjoint(fetched)
    assert verify(folder, home=globex.home).receipt.model == model


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_corrupted_byte_is_found_reported_and_never_renamed(globex, project, model, tmp_path, file):
    def flip(content: bytes) -> bytes:
        return content[:-3] + bytes([content[-3] ^ 0x10]) + content[-2:]

    folder = tmp_path / "merged"
    client = globex.client(wire=TamperingWire(globex.wire, f"files/{file}", flip))
    with client, pytest.raises(DigestMismatchError, match=file.replace(".", r"\.")):
        client.pull(project, model, folder)
    assert not folder.exists()
    assert not (partial_folder(folder) / file).exists()
    with globex.client() as client:
        client.pull(project, model, folder)
    assert verify(folder, home=globex.home).receipt.model == model


def test_an_altered_receipt_is_found_before_a_file_is_fetched(globex, project, model, tmp_path):
    def other_cohort(content: bytes) -> bytes:
        document = json.loads(content)
        document["receipt"]["receipt"]["contributions"].pop()
        return json.dumps(document).encode()

    client = globex.client(wire=TamperingWire(globex.wire, f"models/{MODEL}", other_cohort))
    with client, pytest.raises(ReceiptInvalidError, match="signature is wrong"):
        client.pull(project, model, tmp_path / "merged")
    assert file_requests(globex) == []
    assert not (tmp_path / "merged").exists()


def test_files_that_the_receipt_does_not_name_are_not_fetched(globex, project, model, tmp_path):
    def more(content: bytes) -> bytes:
        document = json.loads(content)
        document["files"].append({"name": "pytorch_model.bin", "bytes": 3, "sha256": "ab" * 32})
        return json.dumps(document).encode()

    client = globex.client(wire=TamperingWire(globex.wire, f"models/{MODEL}", more))
    with client, pytest.raises(ReceiptInvalidError, match="not those of its receipt"):
        client.pull(project, model, tmp_path / "merged")
    assert file_requests(globex) == []


def test_another_models_honest_receipt_does_not_pass(globex, acme, worker, project, model, tmp_path):
    with acme.client() as client:
        client.submit(project, REGMEAN, job="regmean-2")
    worker.run(project, "regmean-2")
    with globex.client() as client:
        other = client.model(project, "regmean-2").model_dump_json().encode()
    client = globex.client(wire=TamperingWire(globex.wire, f"models/{MODEL}", lambda _: other))
    with client, pytest.raises(ReceiptInvalidError, match="asked for"):
        client.pull(project, model, tmp_path / "merged")


def test_a_server_with_another_receipt_key_than_the_pinned_one_is_refused(globex, project, model, tmp_path):
    pinning.pin(globex.home, URL, "QUJD" * 10 + "QUI=")
    with globex.client() as client, pytest.raises(ReceiptInvalidError, match="another receipt key"):
        client.pull(project, model, tmp_path / "merged")
    assert file_requests(globex) == []


def test_a_deleted_model_keeps_its_receipt_but_cannot_be_pulled(acme, globex, project, model, tmp_path):
    with acme.client() as client:
        assert client.delete_model(project, model).deleted_at is not None
    with globex.client() as client:
        assert client.models(project) == []
        assert client.model(project, model).receipt.receipt.model == model
        with pytest.raises(StateError, match="was deleted"):
            client.pull(project, model, tmp_path / "merged")


def test_a_participants_token_does_not_delete(globex, project, model):
    with globex.client() as client, pytest.raises(RoleRequiredError):
        client.delete_model(project, model)
