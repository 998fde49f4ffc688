"""An organization that shares weights only joins a RegMean merge of the service, where the policy lets it."""

import json

import pytest
import torch
from safetensors.torch import load

from gramfuse_shared.contract.policy import Policy
from support.fusion_oracle import relative_error
from support.server_world import OPEN_POLICY, make_base, problem
from support.worker_world import MEMBERS, ROWS, InProcessWorker, contribute, make_gram, make_weights

PROJECT = "acme.tweets"
JOBS, MODEL = f"/v1/projects/{PROJECT}/jobs", f"/v1/projects/{PROJECT}/models/first"
ESTIMATE = {"merge_method": "regmean", "parameters": {"missing_statistics": "estimate"}}
ESTIMATING = OPEN_POLICY.model_copy(update={"missing_statistics": "estimate"})
NAME = "encoder.query.weight"


@pytest.fixture
def worker(world, settings):
    return InProcessWorker(world, settings)


def prepare(world, worker, policy: Policy):
    """Contributions of three, of which the last has no statistics."""
    project = world.project(*MEMBERS, policy=policy)
    for seed, member in enumerate(MEMBERS[:2]):
        contribute(world, project, member, seed)
    world.contribute(project, MEMBERS[2], weights=make_weights(2), taps=())
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)


def submit(world, job, recipe):
    return world.coordinator("acme").put(f"{JOBS}/{job}", json={"recipe": recipe})


def download(world, file):
    answer = world.participant("globex").get(f"{MODEL}/files/{file}")
    assert answer.status_code == 200, answer.text
    return answer.content


def weight_of(content: bytes) -> torch.Tensor:
    return load(content)[NAME].double()


def expected() -> torch.Tensor:
    """(Σ WᵢPᵢ)(Σ Pᵢ)⁻¹, with the third's G in the place of one that was never measured."""
    base = weight_of(make_base().files["model.safetensors"])
    weights = [weight_of(make_weights(seed)) for seed in range(3)]
    grams = [make_gram(seed).double() / ROWS for seed in range(2)]
    moved = weights[2] - base
    shape = moved.T @ moved
    grams.append(shape * (grams[0].trace() + grams[1].trace()) / 2 / shape.trace())
    precisions = [0.9 * gram + 0.1 * gram.diag().diag() for gram in grams]
    left = sum(weight @ precision for weight, precision in zip(weights, precisions, strict=True))
    return torch.linalg.solve(sum(precisions), left, left=False)


def test_the_precision_of_who_sent_weights_only_is_estimated_and_every_report_says_so(world, worker):
    prepare(world, worker, ESTIMATING)
    assert submit(world, "first", ESTIMATE).status_code == 201
    worker.run(PROJECT, "first")
    assert relative_error(weight_of(download(world, "model.safetensors")), expected()) < 2e-6
    (group,) = [entry for entry in json.loads(download(world, "diagnostics.json")) if NAME in entry["parameters"]]
    assert (group["method"], group["estimated"], group["members"], group["rows"]) == ("regmean", ["initech"], 3, 1000)
    card = download(world, "README.md").decode()
    assert "linear layers of which a contribution lacks statistics: its precision is estimated" in card
    assert "| precision estimated of initech |" in card
    assert "missing_statistics: estimate" in download(world, "recipe.yaml").decode()
    log = [entry["message"] for entry in world.coordinator("acme").get(f"{JOBS}/first/log").json()["items"]]
    assert any("with a precision estimated from the difference to the base: initech" in line for line in log)


def test_by_default_such_a_layer_is_averaged_and_an_estimate_is_refused(world, worker):
    prepare(world, worker, OPEN_POLICY)
    refused = problem(submit(world, "first", ESTIMATE), 422, "policy-violation")
    assert refused["facts"] == {"missing_statistics": "estimate"}
    assert submit(world, "first", {"merge_method": "regmean"}).status_code == 201
    worker.run(PROJECT, "first")
    mean = sum(weight_of(make_weights(seed)) for seed in range(3)) / 3
    assert relative_error(weight_of(download(world, "model.safetensors")), mean) < 1e-6
    assert "averaged" in download(world, "README.md").decode()


def test_beside_a_release_with_an_average_no_estimate_of_the_same_cohort_is_released(world, worker):
    prepare(world, worker, ESTIMATING.model_copy(update={"cohorts": "frozen"}))
    assert submit(world, "first", {"merge_method": "regmean"}).status_code == 201
    refused = problem(submit(world, "second", ESTIMATE), 409, "cohort-frozen")
    assert "missing_statistics" in refused["facts"]["differs"]


def test_wudi_needs_nobodys_statistics_and_a_policy_that_names_it(world, worker):
    wudi = {"merge_method": "wudi"}
    prepare(world, worker, OPEN_POLICY.model_copy(update={"methods": ("linear", "wudi")}))
    assert submit(world, "first", wudi).status_code == 201
    worker.run(PROJECT, "first")
    base = weight_of(make_base().files["model.safetensors"])
    moved = [weight_of(make_weights(seed)) - base for seed in range(3)]
    found = weight_of(download(world, "model.safetensors")) - base
    assert 1e-7 < relative_error(found, sum(moved)) < 0.01  # a descent of small steps from the sum
    assert "WUDI-Merging (Cheng et al., ICML 2025)" in download(world, "README.md").decode()
    log = [entry["message"] for entry in world.coordinator("acme").get(f"{JOBS}/first/log").json()["items"]]
    assert not any("linear layers are solved" in line for line in log)


def test_by_default_no_policy_names_wudi(world, worker):
    prepare(world, worker, OPEN_POLICY)
    assert "not wudi" in problem(submit(world, "first", {"merge_method": "wudi"}), 422, "policy-violation")["detail"]
