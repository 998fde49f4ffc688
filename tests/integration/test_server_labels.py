"""Organizations that trained different labels share a head: what the service merges, refuses and tells."""

import json

import pytest
import torch
from safetensors.torch import load, save

from gramfuse_shared.contract.policy import Policy
from support.server_world import BODY_TENSORS, WIDTH, make_base, make_contribution, problem
from support.worker_world import MEMBERS, InProcessWorker, make_weights

PROJECT = "acme.tweets"
JOBS, MODEL = f"/v1/projects/{PROJECT}/jobs", f"/v1/projects/{PROJECT}/models/first"
HEAD = ("classifier.weight", "F32", (3, WIDTH))
SENT = tuple(sorted((*BODY_TENSORS, HEAD)))
SHARED = Policy(heads="shared", minimum_cohort=2, minimum_rows_per_dimension=1.0)
TRAINED = {"acme": [0, 1], "globex": [1, 2], "initech": [1, 2]}  # label 0 by one alone


@pytest.fixture
def worker(world, settings):
    return InProcessWorker(world, settings)


def weights_of(seed: int) -> bytes:
    head = torch.randn(HEAD[2], generator=torch.Generator().manual_seed(100 + seed))
    return save(load(make_weights(seed)) | {HEAD[0]: head})


def said(*trained: int) -> dict:
    return {"labels": {"count": 3, "trained": list(trained)}}


def head_of(content: bytes) -> torch.Tensor:
    return load(content)[HEAD[0]]


def contribute(world, project, member, trained, seed, **changes):
    return world.contribute(
        project, member, tensors=SENT, taps=(), weights=weights_of(seed), **said(*trained), **changes
    )


def submit(world, job, method="linear"):
    return world.coordinator("acme").put(f"{JOBS}/{job}", json={"recipe": {"merge_method": method}})


@pytest.fixture
def project(world, worker):
    made = world.project(*MEMBERS, policy=SHARED)
    for seed, member in enumerate(MEMBERS):
        contribute(world, made, member, TRAINED[member], seed)
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)
    return made


def test_rows_are_merged_of_those_that_trained_them_and_one_that_too_few_trained_is_the_bases(world, worker, project):
    assert submit(world, "first").status_code == 201
    worker.run(PROJECT, "first")
    participant = world.participant("globex")
    merged = head_of(participant.get(f"{MODEL}/files/model.safetensors").content)
    heads = [head_of(weights_of(seed)) for seed in range(3)]
    base = head_of(make_base().files["model.safetensors"])
    expected = [base[0], sum(head[1] for head in heads) / 3, (heads[1][2] + heads[2][2]) / 2]
    for row, value in enumerate(expected):
        assert torch.allclose(merged[row], value, atol=1e-6)
    told = "2 of 3 label rows were trained by fewer than the 3 contributions that hold them; 1 have the base's values"
    assert told in participant.get(f"{MODEL}/files/README.md").text
    entries = json.loads(participant.get(f"{MODEL}/files/diagnostics.json").content)
    assert [entry["reason"] for entry in entries if "label_rows" not in entry and entry["reason"]] == [told]


def test_only_ones_own_organization_sees_which_labels_it_trained(world, project):
    path = f"/v1/projects/{PROJECT}/contributions"
    mine = next(c for c in world.participant("globex").get(path).json()["items"] if c["organization"] == "globex")
    own = world.participant("globex").get(f"{path}/{mine['id']}").json()
    assert own["manifest"]["labels"] == {"count": 3, "trained": [1, 2]}
    theirs = world.participant("initech").get(f"{path}/{mine['id']}")
    assert theirs.json()["manifest"] is None
    assert "trained" not in theirs.text


def test_after_a_release_nobody_is_merged_with_other_labels(world, worker, project):
    assert submit(world, "first").status_code == 201
    worker.run(PROJECT, "first")
    world.clock.advance(hours=1)
    contribute(world, project, "globex", [2], seed=9)
    assert worker.inspect_all() == ["accepted"]
    refused = problem(submit(world, "second"), 409, "cohort-frozen")
    assert refused["facts"]["differs"] == ["globex"]
    world.clock.advance(hours=1)
    contribute(world, project, "globex", [1, 2], seed=10)
    assert worker.inspect_all() == ["accepted"]
    assert submit(world, "second").status_code == 201


@pytest.mark.parametrize(
    ("policy", "made", "code"),
    [
        (Policy(minimum_rows_per_dimension=1), {"tensors": BODY_TENSORS} | said(0), "policy-violation"),
        (SHARED, {"tensors": BODY_TENSORS} | said(0), "architecture-mismatch"),
        (SHARED, {"tensors": SENT, "labels": {"count": 4, "trained": [0]}}, "architecture-mismatch"),
        (SHARED, {"tensors": SENT, "labels": {"count": WIDTH, "trained": [0]}}, "architecture-mismatch"),
    ],
)
def test_labels_that_may_not_leave_or_belong_to_no_rows_are_refused_at_the_manifest(world, policy, made, code):
    project = world.project(*MEMBERS, policy=policy)
    contribution = make_contribution(project, "globex", taps=(), **made)
    path = f"/v1/projects/{PROJECT}/contributions/{contribution.id}"
    problem(world.participant("globex").put_document(path, contribution.manifest), 422, code)


def test_labels_out_of_range_or_order_are_refused_by_the_schema(world):
    project = world.project(*MEMBERS, policy=SHARED)
    made = make_contribution(project, "globex", tensors=SENT, taps=(), **said(0, 1))
    document = made.manifest.model_dump(mode="json")
    for trained in ([0, 3], [1, 0], [1, 1], [-1], ["sports"]):
        body = document | {"labels": {"count": 3, "trained": trained}}
        answer = world.participant("globex").put(f"/v1/projects/{PROJECT}/contributions/{'ab' * 32}", json=body)
        assert (answer.status_code, answer.json()["code"]) in {(422, "request-malformed"), (422, "document-malformed")}
