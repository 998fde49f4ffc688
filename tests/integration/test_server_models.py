"""Published models: what they hold, who may have them, what remains when they are deleted, and the sweep."""

import base64
import json
import os
from datetime import UTC, datetime, timedelta

import torch
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors.torch import load

from gramfuse_server.blobs import open_blobs
from gramfuse_server.database import reading
from gramfuse_server.sweeping import delete_spent_bytes
from gramfuse_server.tables import AuditRow, BlobRow, ModelRow
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.digest import sha256_hex
from support.server_world import OPEN_POLICY, make_base, make_contribution, problem
from support.worker_world import MEMBERS, InProcessWorker, contribute, make_gram, make_statistics, make_weights

PROJECT = "acme.tweets"
MODEL = f"/v1/projects/{PROJECT}/models/first"


def merge(world, worker, recipe=None, *, job="first"):
    body = {"recipe": recipe or {"merge_method": "regmean"}}
    answer = world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{job}", json=body)
    assert answer.status_code == 201, answer.text
    worker.run(PROJECT, job)


def download(world, file, *, by="globex", model=MODEL):
    answer = world.participant(by).get(f"{model}/files/{file}")
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_model_holds_what_its_receipt_says_and_every_file_can_be_had(ready):
    world, worker = ready
    merge(world, worker)
    model = world.participant("globex").get(MODEL).json()
    names = [file["name"] for file in model["files"]]
    assert names == sorted(
        [
            "README.md",
            "config.json",
            "diagnostics.json",
            "diagnostics.svg",
            "model.safetensors",
            "recipe.yaml",
            "tokenizer.json",
        ]
    )
    for file in model["files"]:
        content = download(world, file["name"])
        assert (len(content), sha256_hex(content)) == (file["bytes"], file["sha256"])
    assert model["receipt"]["receipt"]["outputs"] == model["files"]
    assert model["bytes"] == sum(file["bytes"] for file in model["files"])
    assert download(world, "config.json") == make_base().files["config.json"]


def test_the_receipt_is_signed_by_the_key_that_the_server_announces(ready):
    world, worker = ready
    merge(world, worker)
    signed = SignedReceipt.parse(download(world, "receipt.json"))
    assert signed.public_key == world.client().get("/v1/server").json()["receipt_key"]
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed.public_key))
    key.verify(base64.b64decode(signed.signature), signed.receipt.canonical())
    assert signed.model_dump(mode="json") == world.participant("globex").get(MODEL).json()["receipt"]
    assert {member.organization for member in signed.receipt.contributions} == set(MEMBERS)


def test_the_merged_weights_are_the_definitions(ready):
    world, worker = ready
    merge(world, worker)
    merged = load(download(world, "model.safetensors"))
    weights = [load_weights(seed) for seed in range(3)]
    # RegMean with α = .9 around the base: W = (Σ Wᵢ Pᵢ)(Σ Pᵢ)⁻¹
    precisions = []
    for seed in range(3):
        gram = make_gram(seed).double()
        precisions.append((0.9 * gram + 0.1 * gram.diagonal().diag()) / 500)
    products = sum(w["encoder.query.weight"].double() @ p for w, p in zip(weights, precisions, strict=True))
    expected = torch.linalg.solve(sum(precisions), products, left=False)
    error = (merged["encoder.query.weight"].double() - expected).norm() / expected.norm()
    assert error < 2e-6
    mean = sum(w["encoder.query.bias"].double() for w in weights) / 3
    assert torch.allclose(merged["encoder.query.bias"].double(), mean, atol=1e-6)
    base = load(make_base().files["model.safetensors"])
    for kept in ("embeddings.word_embeddings.weight", "classifier.weight", "encoder.position_ids"):
        assert torch.equal(merged[kept], base[kept])
    assert merged.keys() == base.keys()


def load_weights(seed):
    return load(make_weights(seed))


def test_a_sharded_model_has_an_index_and_the_same_values(ready, ready_settings):
    world, whole = ready
    sharded = InProcessWorker(world, ready_settings.model_copy(update={"shard_bytes": 700}))
    merge(world, whole)
    merge(world, sharded, job="second")
    model = f"/v1/projects/{PROJECT}/models/second"
    index = json.loads(download(world, "model.safetensors.index.json", model=model))
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    joined = {}
    for shard in shards:
        joined |= load(download(world, shard, model=model))
    first = load(download(world, "model.safetensors"))
    assert joined.keys() == first.keys() == index["weight_map"].keys()
    assert all(torch.equal(joined[name], first[name]) for name in first)


def test_the_recipe_is_explicit_and_the_card_says_what_was_done(ready):
    world, worker = ready
    merge(world, worker, {"merge_method": "regmean", "parameters": {"alpha": 0.8}})
    receipt = world.participant("globex").get(MODEL).json()["receipt"]["receipt"]
    recipe = yaml.safe_load(download(world, "recipe.yaml"))
    assert recipe["base_model"] == receipt["base"]
    assert [entry["model"] for entry in recipe["models"]] == [item["manifest"] for item in receipt["contributions"]]
    assert recipe["parameters"]["alpha"] == 0.8
    card = download(world, "README.md").decode()
    assert all(member in card for member in MEMBERS)
    assert "α (share of a Gram matrix's off-diagonal): 0.8" in card
    assert "`encoder.query.weight`" in card
    diagnostics = json.loads(download(world, "diagnostics.json"))
    assert any("encoder.query.weight" in entry["parameters"] for entry in diagnostics)


def test_a_chosen_dtype_stands_in_the_weights_and_in_the_configuration(ready):
    world, worker = ready
    merge(world, worker, {"merge_method": "linear", "out_dtype": "bfloat16"})
    merged = load(download(world, "model.safetensors"))
    assert merged["encoder.query.weight"].dtype == torch.bfloat16
    assert merged["encoder.position_ids"].dtype == torch.int64
    # this base's configuration names no dtype, so it stays as it is
    assert json.loads(download(world, "config.json")) == json.loads(make_base().files["config.json"])


def test_a_range_of_a_model_file_is_a_range(ready):
    world, worker = ready
    merge(world, worker)
    whole = download(world, "model.safetensors")
    answer = world.participant("globex").get(f"{MODEL}/files/model.safetensors", headers={"range": "bytes=8-99"})
    assert (answer.status_code, answer.content) == (206, whole[8:100])
    head = world.participant("globex").head(f"{MODEL}/files/model.safetensors")
    assert head.headers["etag"] == f'"{sha256_hex(whole)}"'
    problem(world.participant("globex").get(f"{MODEL}/files/other.bin"), 404, "not-found")


def test_downloads_are_the_coordinators_where_the_policy_says_so(ready):
    world, worker = ready
    merge(world, worker)
    stricter = OPEN_POLICY.model_copy(update={"downloads": "coordinator"})
    assert world.coordinator("acme").put_document(f"/v1/projects/{PROJECT}/policies/2", stricter).status_code == 201
    for file in ("model.safetensors", "receipt.json"):
        problem(world.participant("globex").get(f"{MODEL}/files/{file}"), 403, "role-required")
        assert world.participant("acme").get(f"{MODEL}/files/{file}").status_code == 200
    assert world.participant("globex").get(MODEL).status_code == 200


def test_strangers_see_no_model(ready):
    world, worker = ready
    merge(world, worker)
    world.organization("umbrella")
    for path in ("", "/first", "/first/files/README.md", "/first/files/receipt.json"):
        problem(world.coordinator("umbrella").get(f"/v1/projects/{PROJECT}/models{path}"), 404, "not-found")
    problem(world.coordinator("umbrella").delete(MODEL), 404, "not-found")


def test_a_deleted_model_keeps_its_receipt_and_loses_its_bytes(ready):
    world, worker = ready
    merge(world, worker)
    before = world.participant("globex").get(MODEL).json()
    problem(world.participant("acme").delete(MODEL), 403, "role-required")
    deleted = world.coordinator("acme").delete(MODEL).json()
    assert deleted["deleted_at"] is not None
    assert deleted["receipt"] == before["receipt"]
    assert world.coordinator("acme").delete(MODEL).json() == deleted
    assert world.participant("globex").get(f"/v1/projects/{PROJECT}/models").json()["items"] == []
    problem(world.participant("globex").get(f"{MODEL}/files/README.md"), 404, "not-found")
    delete_spent_bytes(world.services.database, world.services.blobs, world.clock())
    keys = world.stored_keys()
    sizes = {file["name"]: f"sha256/{file['sha256']}" in keys for file in before["files"]}
    base_files = {"config.json", "tokenizer.json"}
    assert sizes == {name: name in base_files for name in sizes}
    with reading(world.services.database) as session:
        assert session.get_one(ModelRow, (PROJECT, "first")).delete_after is None
        assert {f"sha256/{row.sha256}" for row in session.query(BlobRow)} == keys
        assert session.query(AuditRow).filter_by(action="model.delete").count() == 1


def test_a_withdrawal_after_publication_marks_the_model_and_deletes_the_bytes_after_the_delay(ready):
    world, worker = ready
    merge(world, worker)
    contributions = world.participant("globex").get(f"/v1/projects/{PROJECT}/contributions").json()["items"]
    mine = next(item for item in contributions if item["organization"] == "globex")
    before = world.participant("globex").get(MODEL).json()
    path = f"/v1/projects/{PROJECT}/contributions/{mine['id']}"
    files = world.participant("globex").get(path).json()["files"]
    assert world.participant("globex").post(f"{path}/withdraw").status_code == 200
    marked = world.participant("acme").get(MODEL).json()
    assert marked == before | {"withdrawn_members": ["globex"]}
    download(world, "model.safetensors")

    def remaining():
        delete_spent_bytes(world.services.database, world.services.blobs, world.clock())
        return [file["name"] for file in files if f"sha256/{file['sha256']}" in world.stored_keys()]

    assert len(remaining()) == 2
    world.clock.advance(hours=25)
    assert remaining() == []
    download(world, "model.safetensors")


def test_bytes_that_another_upload_names_outlive_a_withdrawal(world, settings):
    worker = InProcessWorker(world, settings)
    project = world.project(*MEMBERS)
    first = contribute(world, project, "acme", 1)
    second = contribute(world, project, "globex", 1)
    assert worker.inspect_all() == ["accepted", "accepted"]
    assert [file.sha256 for file in first.manifest.files] == [file.sha256 for file in second.manifest.files]
    world.participant("acme").post(f"/v1/projects/{PROJECT}/contributions/{first.id}/withdraw")
    world.clock.advance(hours=25)
    delete_spent_bytes(world.services.database, world.services.blobs, world.clock())
    assert {f"sha256/{file.sha256}" for file in second.manifest.files} <= world.stored_keys()


def test_an_upload_that_only_announces_a_file_does_not_keep_the_bytes_of_a_contribution_that_was_withdrawn(ready):
    world, worker = ready
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    withdrawn = contribute(world, project, "acme", 7)
    worker.inspect_all()
    files = {f"sha256/{file.sha256}" for file in withdrawn.manifest.files}
    assert files <= world.stored_keys()
    member = world.participant("acme")
    again = make_contribution(
        project, "acme", weights=make_weights(7), statistics=make_statistics(project, make_gram(7)), generation=2
    )
    path = f"/v1/projects/{PROJECT}/contributions"
    assert member.put_document(f"{path}/{again.id}", again.manifest).status_code == 201
    assert member.post(f"{path}/{withdrawn.id}/withdraw").status_code == 200
    world.clock.advance(hours=25)
    delete_spent_bytes(world.services.database, world.services.blobs, world.clock())
    assert not files & world.stored_keys()
    announced = member.get(f"{path}/{again.id}").json()
    member.put_files(f"{path}/{again.id}", announced, again.files)
    assert member.post(f"{path}/{again.id}/seal").status_code == 200
    assert worker.inspect_all() == ["accepted"]
    assert files <= world.stored_keys()


def test_the_sweep_leaves_no_parts_behind_but_those_still_needed(world, settings):
    worker = InProcessWorker(world, settings)
    project = world.project(*MEMBERS)
    contribute(world, project, "acme", 1)
    assert worker.inspect_all() == ["accepted"]
    contribute(world, project, "globex", 2)
    delete_spent_bytes(world.services.database, world.services.blobs, world.clock())
    parts = {key.split("/")[1] for key in world.stored_keys() if key.startswith("uploads/")}
    assert len(parts) == 1
    assert worker.inspect_all() == ["accepted"]
    assert not [key for key in world.stored_keys() if key.startswith("uploads/")]


def test_what_a_killed_writer_left_is_never_shown_and_swept_after_a_day(tmp_path):
    blobs, now = open_blobs(tmp_path.as_uri()), datetime.now(UTC)
    blobs.put("sha256/whole", b"whole")
    old, fresh = tmp_path / "sha256" / "half#1", tmp_path / "sha256" / "half#2"
    for path in (old, fresh):
        path.write_bytes(b"ha")
    long_ago = (now - timedelta(hours=25)).timestamp()
    os.utime(old, (long_ago, long_ago))
    os.utime(tmp_path / "sha256" / "whole", (long_ago, long_ago))
    assert list(blobs.keys("sha256/")) == ["sha256/whole"]
    assert blobs.delete_unfinished(now - timedelta(hours=24)) == 1
    assert sorted(path.name for path in (tmp_path / "sha256").iterdir()) == ["half#2", "whole"]


def test_a_method_of_differences_runs_through_the_service_and_its_card_says_how(world, settings):
    policy = OPEN_POLICY.model_copy(update={"methods": ("dare_ties",)})
    project = world.project(*MEMBERS, policy=policy)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    worker = InProcessWorker(world, settings)
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)
    refused = world.coordinator("acme").put(
        f"/v1/projects/{PROJECT}/jobs/other", json={"recipe": {"merge_method": "regmean"}}
    )
    problem(refused, 422, "policy-violation")
    parameters = {"lambda": 0.5, "density": 0.25, "seed": 7}
    merge(world, worker, {"merge_method": "dare_ties", "parameters": parameters})
    recipe = yaml.safe_load(download(world, "recipe.yaml"))
    assert {key: recipe["parameters"][key] for key in parameters} == parameters
    signed = SignedReceipt.parse(download(world, "receipt.json"))
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed.public_key))
    key.verify(base64.b64decode(signed.signature), signed.receipt.canonical())
    card = download(world, "README.md").decode()
    assert "DARE" in card
    assert "- density (share of each difference that is kept): 0.25" in card
    assert "- seed of what is left to chance: 7" in card
