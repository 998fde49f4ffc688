"""`gramfuse-server verify`, and what it is for: a server that was saved, destroyed and restored."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from gramfuse.verification import verify
from gramfuse_server import audit_log, receipt_key
from gramfuse_server.app import create_app
from gramfuse_server.blobs import COMPLETE, Blobs, blob_key
from gramfuse_server.cli import main
from gramfuse_server.database import reading, transaction
from gramfuse_server.settings import Settings
from gramfuse_server.sweeping import adopt_strays, delete_spent_bytes
from gramfuse_server.tables import ContributionRow, ModelFileRow, ModelRow, ProjectRow, UploadFileRow
from support.client_world import Site
from support.dumps import destroy, dump, restore
from support.server_world import OPEN_POLICY, World, make_base
from support.worker_world import InProcessWorker, be_ready, contribute

one_database = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # not its queries

PROJECT = "acme.tweets"
MODEL = "regmean-1"


def begin_merged(world, settings):
    be_ready(world, settings)
    submit(world, MODEL)
    InProcessWorker(world, settings).run(PROJECT, MODEL)


def submit(world, job):
    body = {"recipe": {"merge_method": "regmean"}}
    answer = world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{job}", json=body)
    assert answer.status_code == 201, answer.text


def send_base(world, organization):
    """Create one more project with the same base model, and send it."""
    base, coordinator = make_base(), world.organization(organization)
    path = f"/v1/projects/{organization}.tweets"
    documents = {"base": base.manifest.model_dump(mode="json"), "policy": OPEN_POLICY.model_dump(mode="json")}
    coordinator.put_files(f"{path}/base", coordinator.put(path, json=documents).json(), base.files)
    assert coordinator.post(f"{path}/base/seal").status_code == 200


@pytest.fixture
def server(begun) -> tuple[World, Settings]:
    return begun(begin_merged)


@pytest.fixture
def run_verify(monkeypatch, capsys):
    """Runs the command over a server; returns its exit code and what it printed."""

    def run(settings: Settings, *arguments: str) -> tuple[int, dict]:
        monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(settings.server_home))
        monkeypatch.setenv("GRAMFUSE_DATABASE_URL", settings.database_url.get_secret_value())
        capsys.readouterr()
        code = main(["verify", "--format", "json", *arguments])
        return code or 0, json.loads(capsys.readouterr().out)

    return run


def verdicts(printed) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in printed["checks"]}


def test_a_server_that_was_destroyed_is_restored_verified_and_its_model_pulled(
    server, run_verify, new_empty_database_url, portal, tmp_path
):
    world, settings = server
    contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 9)  # in parts still
    with reading(world.services.database) as session:
        noted = tmp_path / "head.txt"
        noted.write_text("{} {}\n".format(*audit_log.verify(session)))
    # the order that docs/operations.md gives: database, blobs, key
    saved = tmp_path / "saved"
    saved.mkdir()
    dump(settings.database_url, saved / "database")
    shutil.copytree(settings.server_home / "blobs", saved / "blobs")
    shutil.copy2(settings.receipt_key, saved / "receipt-key.pem")
    world.services.database.close()
    destroy(settings.database_url)
    shutil.rmtree(settings.server_home)

    place = Settings(server_home=tmp_path / "new-place", database_url=new_empty_database_url(), part_bytes=1024)
    place.server_home.mkdir()
    restore(saved / "database", place.database_url)
    shutil.copytree(saved / "blobs", place.server_home / "blobs")
    shutil.copy2(saved / "receipt-key.pem", place.receipt_key)
    code, printed = run_verify(place, "--digests", "--head", str(noted))
    assert (code, printed["verdict"], printed["losses"]) == (0, "ok", []), printed
    assert verdicts(printed) == dict.fromkeys(("audit log", "receipts", "files"), "ok")

    restored = World(create_app(place, clock=world.clock), world.clock, portal, dict(world._tokens))
    try:
        assert adopt_strays(restored.services.database, restored.services.blobs, world.clock()) == 0
        world.clock.advance(hours=25)
        assert delete_spent_bytes(restored.services.database, restored.services.blobs, world.clock()) == 0
        site = Site(restored, "globex", "participant", tmp_path)
        with site.client() as client:
            client.pull(PROJECT, MODEL, tmp_path / "model")
        verify(tmp_path / "model", home=site.home)
        worker = InProcessWorker(restored, place)
        assert worker.inspect_all() == ["accepted"]
        submit(restored, "regmean-2")
        worker.run(PROJECT, "regmean-2")  # and work goes on
    finally:
        restored.services.database.close()


def test_what_is_missing_cut_or_damaged_is_told_with_who_names_it_and_what_to_do(server, run_verify):
    world, settings = server
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    contribute(world, project, "acme", 9)
    with reading(world.services.database) as session:
        files = {row.name: row for row in session.query(ModelFileRow)}
    stored = settings.server_home / "blobs"
    damaged = stored / blob_key(files["model.safetensors"].sha256)
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    (stored / blob_key(files["README.md"].sha256)).write_bytes(b"cut")
    (stored / blob_key(files["config.json"].sha256)).unlink()
    next(stored.glob("uploads/*/*/0.*")).unlink()

    def told(*arguments):
        code, printed = run_verify(settings, *arguments)
        assert code == 1
        assert verdicts(printed)["files"] == "failed"
        return {(loss["named_by"].rpartition(", ")[2], loss["trouble"]) for loss in printed["losses"]}, printed

    losses, printed = told()
    lost = {("README.md", "wrong size"), ("config.json", "missing")}
    assert losses - {loss for loss in losses if loss[0].startswith("part 0 of")} == lost
    assert len(losses) == 3
    base, model = [loss for loss in printed["losses"] if loss["key"] == blob_key(files["config.json"].sha256)]
    assert base["named_by"] == "base model of acme.tweets, config.json"
    assert "sends it as another project" in base["advice"]
    assert base["models"] == []  # a merge reads nothing of what is missing
    assert model["named_by"] == f"model {PROJECT}/{MODEL}, config.json"
    deep, _ = told("--digests")
    assert deep - losses == {("model.safetensors", "wrong bytes")}


@one_database
def test_what_is_damaged_is_repaired_as_the_advice_says_by_who_pushes_it_again(server, run_verify):
    world, settings = server
    member, worker = world.participant("globex"), InProcessWorker(world, settings)
    project = member.get(f"/v1/projects/{PROJECT}").json()
    with reading(world.services.database) as session:
        row = session.query(ContributionRow).filter_by(organization="globex").one()
        files = {file.name: file.sha256 for file in session.query(UploadFileRow).filter_by(upload=row.upload)}
        base_upload = session.get_one(ProjectRow, PROJECT).base_upload
        base = session.query(UploadFileRow).filter_by(upload=base_upload, name="model.safetensors").one().sha256
    stored = settings.server_home / "blobs"
    changed = stored / blob_key(files["statistics.safetensors"])
    changed.write_bytes(changed.read_bytes()[:-4] + b"rust")
    for sha256 in (files["weights.safetensors"], base):
        (stored / blob_key(sha256)).write_bytes((stored / blob_key(sha256)).read_bytes()[:100])
    code, printed = run_verify(settings, "--digests")
    assert (code, len(printed["losses"])) == (1, 3)
    losses = {(loss["kind"], loss["trouble"]): loss for loss in printed["losses"]}
    statistics, base_model = losses["contribution", "wrong bytes"], losses["base", "wrong size"]
    assert statistics["named_by"] == f"contribution {row.id} of globex to {PROJECT}, statistics.safetensors"
    assert (
        f"globex takes it back and pushes it again: `gramfuse contribution withdraw {PROJECT} {row.id[:12]}`"
        in (statistics["advice"])
    )
    assert (statistics["organization"], statistics["contribution"]) == ("globex", row.id)
    assert statistics["models"] == base_model["models"] == [MODEL]
    assert "create NAME --base FOLDER" in base_model["advice"]
    (told,) = [check for check in printed["checks"] if check["found"].startswith(f"wrong bytes: {statistics['key']}")]
    assert told["advice"].endswith(f"Merged from it since it was accepted: {MODEL}; merge these again")

    path = f"/v1/projects/{PROJECT}/contributions/{row.id}"
    assert member.post(f"{path}/withdraw").status_code == 200
    contribute(world, project, "globex", 1, generation=2)
    send_base(world, "globex")
    assert worker.inspect_all() == ["accepted", "accepted"]
    code, printed = run_verify(settings, "--digests")
    assert (code, printed["losses"]) == (0, []), printed


@one_database
def test_people_see_at_most_ten_losses_and_that_there_are_more(server, monkeypatch, capsys):
    _, settings = server
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(settings.server_home))
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", settings.database_url.get_secret_value())
    shutil.rmtree(settings.server_home / "blobs" / "sha256")
    assert main(["verify"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("missing: sha256/") == 10
    assert "more are missing or damaged" in printed
    assert "→ restore it from the copy of the store" in printed


def test_a_shard_of_a_running_job_counts_and_what_is_due_for_deletion_does_not(server, run_verify):
    world, settings = server
    worker = InProcessWorker(world, settings)
    submit(world, "second")
    attempt = worker.attempt(PROJECT, "second")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    assert world.coordinator("acme").delete(f"/v1/projects/{PROJECT}/models/{MODEL}").status_code == 200
    shutil.rmtree(settings.server_home / "blobs" / "sha256")
    _, printed = run_verify(settings)
    named = {loss["named_by"] for loss in printed["losses"]}
    assert f"job {PROJECT}/second, attempt 1, model.safetensors" in named
    assert not [each for each in named if each.startswith("model ")]


def test_what_is_published_accepted_and_logged_meanwhile_is_not_told_as_missing(server, run_verify, monkeypatch):
    """Found by `make soak`: each query saw a moment of its own, and the store was listed before what is in it."""
    world, settings = server
    worker = InProcessWorker(world, settings)
    submit(world, "second")
    contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 9)
    listed, worked = Blobs.sizes, []

    def list_while_the_server_works(blobs: Blobs, prefix: str) -> Iterator[tuple[str, int]]:
        if prefix == COMPLETE and not worked:
            before = list(listed(blobs, prefix))
            worker.run(PROJECT, "second")
            worked.extend(worker.inspect_all())
            return iter(before)
        return listed(blobs, prefix)

    monkeypatch.setattr(Blobs, "sizes", list_while_the_server_works)
    code, printed = run_verify(settings, "--digests")
    assert worked == ["accepted"]
    assert (code, printed["verdict"], printed["losses"]) == (0, "ok", []), printed


@one_database
def test_another_receipt_key_and_a_changed_receipt_are_told(server, run_verify):
    world, settings = server
    settings.receipt_key.unlink()
    code, printed = run_verify(settings)
    assert (code, verdicts(printed)["receipts"]) == (1, "failed")
    receipt_key.create_key(settings.receipt_key)
    (told,) = [check for check in run_verify(settings)[1]["checks"] if check["name"] == "receipts"]
    assert f"{PROJECT}/{MODEL} is signed by another key" in told["found"]
    assert "restore the key" in told["advice"]
    with transaction(world.services.database) as session:
        row = session.get_one(ModelRow, (PROJECT, MODEL))
        row.receipt = row.receipt.replace('"attempt":1', '"attempt":2')
        session.query(ModelFileRow).filter_by(name="README.md").delete()
    (told,) = [check for check in run_verify(settings)[1]["checks"] if check["name"] == "receipts"]
    assert "has a wrong signature" in told["found"]
    assert "names other files than the model has" in told["found"]


def test_an_audit_log_that_was_edited_or_is_older_than_a_noted_head_is_told(server, run_verify, tmp_path, capsys):
    world, settings = server
    head = tmp_path / "head.txt"
    head.write_text(f"9999 {'0' * 64}\n")
    code, printed = run_verify(settings, "--head", str(head))
    assert (code, verdicts(printed)["audit log"]) == (1, "failed")
    assert "if the head was noted after this backup" in printed["checks"][0]["advice"]
    with transaction(world.services.database) as session:
        session.execute(text("UPDATE audit_log SET subject = 'another' WHERE sequence = 2"))
    _, printed = run_verify(settings)
    assert "row 2 of the audit log was edited" in printed["checks"][0]["found"]
    told = printed["checks"][0]["advice"]
    assert ("on a running server" in told, "head" in told) == (True, False)
    _, printed = run_verify(settings, "--head", str(head))
    assert printed["checks"][0]["advice"] == told  # the log itself is broken, whatever was noted
    head.write_text("no head")
    assert main(["verify", "--head", str(head)]) == 1
    assert capsys.readouterr().err.startswith("error[file-unreadable]: ")


def test_a_database_without_tables_and_a_store_that_is_away_are_told(
    server, run_verify, new_empty_database_url, monkeypatch
):
    _, settings = server
    empty = settings.model_copy(update={"database_url": new_empty_database_url()})
    if empty.database_url.get_secret_value().startswith("sqlite"):
        Path(empty.database_url.get_secret_value().removeprefix("sqlite:///")).touch()
    code, printed = run_verify(empty)
    assert (code, [check["name"] for check in printed["checks"]]) == (1, ["database"])
    monkeypatch.setenv("GRAMFUSE_BLOBS", "what://is.this")
    code, printed = run_verify(settings)
    assert (code, verdicts(printed)["files"]) == (1, "failed")
