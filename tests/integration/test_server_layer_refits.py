"""Refits of linear layers through the public API: what is refused, and what model comes out."""

import json

import pytest
import torch
from safetensors.torch import load

from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.contract.requests import Answer
from support.answers import REQUESTS, give, send
from support.refits import layer_statistics, rows_of_layers
from support.server_world import WIDTH, entry, problem
from support.worker_world import MEMBERS, InProcessWorker, contribute

PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"
LAYER, BIAS = "encoder.query.weight", "encoder.query.bias"
ROWS = 200
POLICY = Policy(
    minimum_rows_per_dimension=1.0, methods=("linear", "refit"), requests=("refit", "evaluate"), cohorts="frozen"
)


@pytest.fixture
def worker(world, settings):
    return InProcessWorker(world, settings)


@pytest.fixture
def project(world, worker):
    """A project whose members contributed, and the mean of that as the model `first`."""
    project = world.project(*MEMBERS, policy=POLICY)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)
    submitted = world.coordinator("acme").put(f"{PATH}/jobs/first", json={"recipe": {"merge_method": "linear"}})
    assert submitted.status_code == 201, submitted.text
    worker.run(PROJECT, "first")
    return project


def ask(world, **body):
    body = {"kind": "refit", "models": ["first"], "layers": [LAYER]} | body
    return world.coordinator("acme").put(f"{REQUESTS}/refit", json=body)


def refit_answer(world, folder, organization, *, outputs=None, content=None, **options):
    """An answer with refit statistics of some layers, and its file."""
    options = {"rows": ROWS, "seed": 0, "width": WIDTH} | options
    statistics = layer_statistics(outputs or {LAYER: WIDTH}, options.pop("rows"), options.pop("seed"), **options)
    statistics.save(folder / "refit.safetensors")
    content = content or (folder / "refit.safetensors").read_bytes()
    metadata = statistics.metadata()
    section = {
        "file": entry("statistics.safetensors", content),
        "taps": metadata.taps,
        "collector": metadata.collector,
    }
    policy = world.coordinator("acme").get(PATH).json()["policy"]
    told = {"project": PROJECT, "request": "refit", "organization": organization, "policy": policy}
    return Answer.model_validate(told | {"statistics": section}), content


def answer_all(world, worker, folder):
    for seed, member in enumerate(MEMBERS):
        assert send(world, *refit_answer(world, folder, member, seed=seed)).status_code == 200
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)


def submit(world, job="second", **changes):
    recipe = {"merge_method": "refit", "base_model": "first", "request": "refit"} | changes
    return world.coordinator("acme").put(f"{PATH}/jobs/{job}", json={"recipe": recipe})


def tensors(world, model):
    return load(world.participant("globex").get(f"{PATH}/models/{model}/files/model.safetensors").content)


def file_of(world, model, name):
    return world.participant("globex").get(f"{PATH}/models/{model}/files/{name}").text


def test_what_may_not_leave_or_does_not_fit_never_travels(world, project, tmp_path):
    ask(world, layers=[])
    before = world.stored_keys()
    for changes, code in (
        ({"rows": WIDTH}, "policy-violation"),  # fewer distinct rows than features and the constant
        ({"source": "embeddings"}, "policy-violation"),
        ({"outputs": {LAYER: WIDTH, "classifier.weight": 3}}, "policy-violation"),
        ({"outputs": {"embeddings.word_embeddings.weight": 3}}, "policy-violation"),
        ({"outputs": {LAYER: WIDTH + 1}}, "architecture-mismatch"),
        ({"width": WIDTH - 1}, "architecture-mismatch"),
    ):
        answer, _ = refit_answer(world, tmp_path, "acme", **changes)
        problem(give(world, answer), 422, code)
    assert world.stored_keys() == before


def test_a_layer_that_was_not_asked_for_is_refused(world, project, tmp_path):
    ask(world, layers=["other.weight"])
    problem(give(world, refit_answer(world, tmp_path, "acme")[0]), 422, "architecture-mismatch")


def test_numbers_that_no_rows_give_are_rejected_by_the_worker(world, worker, project, tmp_path):
    ask(world)
    _, content = refit_answer(world, tmp_path, "acme")
    length = 4 * (WIDTH + 1) * (WIDTH + 1 + WIDTH)
    for place, value, reason in (
        (0, float("nan"), "holds NaN"),
        (0, -1e6, "negative sum of squares"),
        ((WIDTH + 1) ** 2 - 1, ROWS + 1.0, "the constant's square"),
        (-1, float("inf"), "product with the differences holds NaN or infinity"),
    ):
        values = torch.frombuffer(bytearray(content[-length:]), dtype=torch.float32)
        values[place] = value
        spoilt = content[:-length] + values.numpy().tobytes()
        answer, _ = refit_answer(world, tmp_path, "acme", content=spoilt)
        assert send(world, answer, spoilt).status_code == 200
        assert worker.inspect_all() == ["rejected"]
        assert reason in world.participant("acme").get(f"{REQUESTS}/refit").json()["asked"][0]["reason"]
    assert send(world, *refit_answer(world, tmp_path, "acme")).status_code == 200


def test_a_models_layer_is_corrected_by_everybodys_differences_and_the_rest_stays(world, worker, project, tmp_path):
    ask(world)
    answer_all(world, worker, tmp_path)
    assert submit(world).status_code == 201
    worker.run(PROJECT, "second")
    first, second = tensors(world, "first"), tensors(world, "second")
    assert {name for name in first if not torch.equal(first[name], second[name])} == {LAYER, BIAS}
    # the definition: Σ (1/n) x̃x̃ᵀ, each diagonal entry times 1.01
    gram = torch.zeros(WIDTH + 1, WIDTH + 1, dtype=torch.float64)
    product = torch.zeros(WIDTH + 1, WIDTH, dtype=torch.float64)
    for seed in range(len(MEMBERS)):
        x, lacking = rows_of_layers({LAYER: WIDTH}, ROWS, seed, width=WIDTH)
        gram += x.double().T @ x.double() / ROWS
        product += x.double().T @ lacking[LAYER].double() / ROWS
    change = torch.linalg.solve(gram + 0.01 * gram.diagonal().diag(), product)
    torch.testing.assert_close(second[LAYER].double(), first[LAYER].double() + change[:WIDTH].T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(second[BIAS].double(), first[BIAS].double() + change[WIDTH], atol=1e-6, rtol=1e-5)
    signed = world.participant("acme").get(f"{PATH}/models/second").json()["receipt"]
    receipt = SignedReceipt.model_validate(signed).receipt
    assert (receipt.recipe.base_model, receipt.recipe.request) == ("first", "refit")
    assert (receipt.recipe.parameters.ridge, receipt.method_version) == (0.01, "refit/1")
    assert len({answer.answer for answer in receipt.answers}) == len(MEMBERS)
    card = file_of(world, "second", "README.md")
    assert "Merged anew from `first`: 1 linear layers, with statistics that every organization measured" in card
    assert "ridge regression of what the outputs of the merged model's linear layers lack" in card
    assert "ridge (added to each entry of a Gram matrix's diagonal, times itself): 0.01" in card
    (told,) = [one for one in json.loads(file_of(world, "second", "diagnostics.json")) if one["method"] == "refit"]
    assert (told["parameters"], told["members"], told["rows"]) == ([LAYER, BIAS], 3, 3 * ROWS)
    shown = world.participant("acme").get(f"{PATH}/jobs/second/diagnostics").json()
    assert [one["fallback"] for one in shown["layers"] if one["method"] == "refit"] == ["none"]


def test_with_frozen_cohorts_another_ridge_over_the_same_answers_is_refused(world, worker, project, tmp_path):
    ask(world)
    answer_all(world, worker, tmp_path)
    problem(submit(world, merge_method="linear"), 422, "recipe-invalid")
    problem(submit(world, parameters={"ridge": 0}), 422, "request-malformed")
    assert submit(world).status_code == 201
    worker.run(PROJECT, "second")
    problem(submit(world, "third", parameters={"ridge": 0.1}), 409, "cohort-frozen")
    assert submit(world, "third").status_code == 201


# --- where nothing of the layers may leave somebody -------------------------------------------------------------------


def withhold(world, organization, **changes):
    policy = world.coordinator("acme").get(PATH).json()["policy"]
    told = {"project": PROJECT, "request": "refit", "organization": organization, "policy": policy}
    return give(world, Answer.model_validate(told | {"withheld": ["few_rows"]} | changes))


def test_that_nothing_may_leave_is_an_answer_with_its_reason_which_members_see(world, worker, project, tmp_path):
    ask(world)
    assert withhold(world, "globex").json()["state"] == "accepted"
    for seed, member in enumerate(("acme", "initech")):
        assert send(world, *refit_answer(world, tmp_path, member, seed=seed)).status_code == 200
    worker.inspect_all()
    seen = world.participant("initech").get(f"{REQUESTS}/refit").json()
    assert seen["state"] == "complete"
    assert [place.get("withheld") for place in seen["asked"]] == [None, ["few_rows"], None]

    # the layers stay as they are, and the card says whose statistics are missing
    assert submit(world).status_code == 201
    worker.run(PROJECT, "second")
    first, second = tensors(world, "first"), tensors(world, "second")
    assert all(torch.equal(first[name], second[name]) for name in first)
    card = file_of(world, "second", "README.md")
    assert "Merged anew from `first`: 0 linear layers" in card
    left = "- request `refit`, 1 linear layers (globex: too few texts were measured)"
    assert left in card

    # what comes after it says so too
    body = {"kind": "refit", "models": ["second"], "layers": ["encoder.output.weight"]}
    assert world.coordinator("acme").put(f"{REQUESTS}/refit-2", json=body).status_code == 201
    for seed, member in enumerate(MEMBERS):
        answer, content = refit_answer(world, tmp_path, member, seed=seed, outputs={"encoder.output.weight": WIDTH})
        assert send(world, answer.model_copy(update={"request": "refit-2"}), content).status_code == 200
    worker.inspect_all()
    assert submit(world, "third", base_model="second", request="refit-2").status_code == 201
    worker.run(PROJECT, "third")
    assert not torch.equal(tensors(world, "third")["encoder.output.weight"], first["encoder.output.weight"])
    assert left in file_of(world, "third", "README.md")


def test_what_is_withheld_is_said_by_known_reasons_alone_and_only_of_layers(world, project, tmp_path):
    ask(world)
    mixed, _ = refit_answer(world, tmp_path, "acme")
    problem(withhold(world, "acme", statistics=mixed.statistics), 422, "request-malformed")
    document = {"project": PROJECT, "request": "refit", "organization": "acme", "withheld": ["free text"]}
    policy = world.coordinator("acme").get(PATH).json()["policy"]
    answer = world.participant("acme").put(f"{REQUESTS}/refit/answers/acme", json=document | {"policy": policy})
    problem(answer, 422, "document-malformed")
    body = {"kind": "evaluate", "models": ["first"]}
    assert world.coordinator("acme").put(f"{REQUESTS}/eval", json=body).status_code == 201
    problem(withhold(world, "acme", request="eval"), 422, "request-malformed")
