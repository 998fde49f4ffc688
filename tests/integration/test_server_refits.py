"""Head refits and calibrations through the public API: what is refused, and what models are merged anew."""

import json

import pytest
import torch
from safetensors.torch import load

from gramfuse.measuring.head import HeadStatistics
from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.fusion.calibration import add_histograms, choose_shifts
from gramfuse_shared.fusion.packing import packed_length
from support.answers import REQUESTS, give, send
from support.server_world import BASE_TENSORS, WIDTH, entry, make_base, problem
from support.worker_world import MEMBERS, InProcessWorker, contribute

PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"
WEIGHT, BIAS = "classifier.weight", "classifier.bias"
LABELS = 3
TENSORS = (*BASE_TENSORS, (BIAS, "F32", (LABELS,)))
POLICY = Policy(
    heads="shared",
    minimum_rows_per_dimension=1.0,
    methods=("linear", "head", "calibration"),
    requests=("head", "calibration", "evaluate"),
    minimum_evaluation_examples=20,
)


@pytest.fixture
def server(request, begun, make_world, settings):
    """A world and its settings; with a project, for those who ask for that."""
    return begun(begin_project) if "project" in request.fixturenames else (make_world(), settings)


@pytest.fixture
def world(server):
    return server[0]


@pytest.fixture
def worker(server):
    return InProcessWorker(*server)


def begin(world, worker, policy):
    """A project whose members contributed under the policy, and the mean of that as the model `first`."""
    project = world.project(*MEMBERS, policy=policy, base=make_base(tensors=TENSORS))
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)
    merge(world, worker, "first", merge_method="linear")
    return project


def merge(world, worker, job, **recipe):
    submitted = world.coordinator("acme").put(f"{PATH}/jobs/{job}", json={"recipe": recipe})
    assert submitted.status_code == 201, submitted.text
    worker.run(PROJECT, job)


def begin_project(world, settings):
    begin(world, InProcessWorker(world, settings), POLICY)


@pytest.fixture
def project(world):
    return world.coordinator("acme").get(PATH).json()


def ask(world, kind, identifier=None, **body):
    body = {"kind": kind, "models": ["first"]} | body
    return world.coordinator("acme").put(f"{REQUESTS}/{identifier or kind}", json=body)


def measure(seed, *, labels=LABELS, width=WIDTH, rows=200, weight=WEIGHT, base=None):
    """Features of a merged trunk, logits, and the statistics of both."""
    generator = torch.Generator().manual_seed(300 + seed)
    features = torch.randn(rows, width, generator=generator)
    logits = 2 * torch.randn(rows, labels, generator=generator) + 1
    return (
        features,
        logits,
        HeadStatistics.of(weight, features, logits, {bytes([i]): 1 for i in range(rows)}, base=base),
    )


def head_answer(world, folder, organization, statistics, *, request="head", content=None, **changes):
    """An answer with head statistics, and its file."""
    statistics.save(folder / "head.safetensors")
    content = content or (folder / "head.safetensors").read_bytes()
    metadata = statistics.metadata
    section = {
        "file": entry("statistics.safetensors", content),
        "taps": metadata.taps,
        "collector": metadata.collector,
        "labels": metadata.labels,
    }
    return document(world, organization, request, statistics=section | changes), content


def histograms(seed, *, labels=LABELS, classes=range(LABELS), kind="margin", least=1):
    generator = torch.Generator().manual_seed(seed)

    def counts():
        return torch.randint(least, least + 5, (BINS,), generator=generator).tolist()

    found = [{"label": label, "labelled": counts(), "others": counts()} for label in classes]
    return CalibrationHistograms.model_validate({"score": kind, "labels": labels, "classes": found})


def document(world, organization, request, **parts):
    policy = world.coordinator("acme").get(PATH).json()["policy"]
    told = {"project": PROJECT, "request": request, "organization": organization, "policy": policy}
    return Answer.model_validate(told | parts)


def submit(world, job="second", **changes):
    recipe = {"merge_method": "head", "base_model": "first", "request": "head"} | changes
    return world.coordinator("acme").put(f"{PATH}/jobs/{job}", json={"recipe": recipe})


def tensors(world, model):
    stored = world.participant("globex").get(f"{PATH}/models/{model}/files/model.safetensors")
    return load(stored.content)


def file_of(world, model, name):
    return world.participant("globex").get(f"{PATH}/models/{model}/files/{name}").text


def answer_heads(world, worker, folder, *, members=MEMBERS, request="head"):
    measured = []
    for seed, member in enumerate(members):
        features, logits, statistics = measure(seed)
        assert send(world, *head_answer(world, folder, member, statistics, request=request)).status_code == 200
        measured.append((features, logits))
    assert worker.inspect_all() == ["accepted"] * len(members)
    return measured


# --- what may be asked -----------------------------------------------------------------------------------------------


def test_what_reveals_heads_is_not_asked_where_they_are_private(world, worker):
    begin(world, worker, POLICY.model_copy(update={"heads": "private"}))
    for kind in ("head", "calibration"):
        refused = problem(ask(world, kind), 422, "policy-violation")
        assert "needs shared heads" in refused["detail"]


def test_what_nothing_could_be_made_of_is_not_asked(world, worker):
    begin(world, worker, POLICY.model_copy(update={"methods": ("linear",)}))
    for kind in ("head", "calibration"):
        assert "nothing be merged by" in problem(ask(world, kind), 422, "policy-violation")["detail"]


def test_a_refit_is_of_one_model_and_of_no_layers(world, project):
    for kind in ("head", "calibration"):
        problem(ask(world, kind, models=["first", "second"]), 422, "request-malformed")
        problem(ask(world, kind, layers=[WEIGHT]), 422, "request-malformed")


# --- head answers ----------------------------------------------------------------------------------------------------


def test_head_statistics_that_do_not_fit_never_travel(world, project, tmp_path):
    ask(world, "head")
    before = world.stored_keys()
    for changes, code in (
        ({"rows": WIDTH}, "policy-violation"),  # fewer distinct rows than features and the constant
        ({"labels": 4}, "architecture-mismatch"),
        ({"width": WIDTH - 1}, "architecture-mismatch"),
        ({"weight": "score.weight"}, "policy-violation"),
        ({"weight": "embeddings.word_embeddings.weight"}, "policy-violation"),
    ):
        answer, _ = head_answer(world, tmp_path, "acme", measure(0, **changes)[2])
        problem(give(world, answer), 422, code)
    assert world.stored_keys() == before


def test_an_answer_of_another_kind_is_refused(world, project, tmp_path):
    ask(world, "head")
    ask(world, "calibration")
    head, _ = head_answer(world, tmp_path, "acme", measure(0)[2], request="calibration")
    counts = document(world, "acme", "head", histograms=histograms(0))
    plain, _ = head_answer(world, tmp_path, "acme", measure(0)[2], labels=None)
    for answer in (head, counts, plain):
        assert "and nothing else" in problem(give(world, answer), 422, "request-malformed")["detail"]


def test_the_same_answer_again_is_the_same_and_another_is_refused(world, worker, project, tmp_path):
    ask(world, "head")
    answer, content = head_answer(world, tmp_path, "acme", measure(0)[2])
    assert send(world, answer, content).json()["state"] == "sealed"
    assert worker.inspect_all() == ["accepted"]
    assert give(world, answer).status_code == 200
    problem(give(world, head_answer(world, tmp_path, "acme", measure(1)[2])[0]), 409, "conflict")
    own = world.participant("acme").get(f"{REQUESTS}/head/answers/acme").json()
    assert (own["state"], own["answer"]["statistics"]["labels"]) == ("accepted", LABELS)


def test_a_file_that_is_not_what_was_announced_is_not_sealed(world, project, tmp_path):
    ask(world, "head")
    elsewhere, content = head_answer(world, tmp_path, "acme", measure(0, base="ab" * 32)[2])
    problem(send(world, elsewhere, content), 422, "architecture-mismatch")
    answer, _ = head_answer(world, tmp_path, "globex", measure(0)[2])
    other, content = head_answer(world, tmp_path, "globex", measure(0, rows=201)[2])
    announced = answer.statistics.model_copy(update={"file": other.statistics.file})
    problem(send(world, answer.model_copy(update={"statistics": announced}), content), 422, "statistics-malformed")


def test_numbers_that_no_rows_give_are_rejected_by_the_worker(world, worker, project, tmp_path):
    ask(world, "head")
    statistics = measure(0)[2]
    _, content = head_answer(world, tmp_path, "acme", statistics)
    length = 4 * (packed_length(WIDTH + 1) + (WIDTH + 1) * LABELS)
    for place, value, reason in (
        (0, float("nan"), "holds NaN"),
        (0, -1e6, "negative sum of squares"),
        (-1, float("inf"), "product with the logits holds NaN or infinity"),
    ):
        values = torch.frombuffer(bytearray(content[-length:]), dtype=torch.float32)
        values[place] = value
        spoilt = content[:-length] + values.numpy().tobytes()
        answer, _ = head_answer(world, tmp_path, "acme", statistics, content=spoilt)
        assert send(world, answer, spoilt).status_code == 200
        assert worker.inspect_all() == ["rejected"]
        assert reason in world.participant("acme").get(f"{REQUESTS}/head").json()["asked"][0]["reason"]
    assert send(world, *head_answer(world, tmp_path, "acme", statistics)).status_code == 200


# --- merging heads ---------------------------------------------------------------------------------------------------


def test_a_model_gets_the_ridge_solution_of_everybodys_logits_as_its_head_and_stays_otherwise(
    world, worker, project, tmp_path
):
    ask(world, "head")
    measured = answer_heads(world, worker, tmp_path)
    assert submit(world).status_code == 201
    worker.run(PROJECT, "second")
    first, second = tensors(world, "first"), tensors(world, "second")
    assert {name for name in first if not torch.equal(first[name], second[name])} == {WEIGHT, BIAS}
    # the definition: Σ (1/n) z̃z̃ᵀ with a hundredth of the features' mean energy on their diagonal
    gram = torch.zeros(WIDTH + 1, WIDTH + 1, dtype=torch.float64)
    product = torch.zeros(WIDTH + 1, LABELS, dtype=torch.float64)
    for features, logits in measured:
        z = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
        gram += z.T @ z / len(z)
        product += z.T @ logits.double() / len(z)
    gram[:WIDTH, :WIDTH] += 0.01 * gram.diagonal()[:WIDTH].mean() * torch.eye(WIDTH)
    solution = torch.linalg.solve(gram, product)
    torch.testing.assert_close(second[WEIGHT].double(), solution[:WIDTH].T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(second[BIAS].double(), solution[WIDTH], atol=1e-6, rtol=1e-5)
    receipt = SignedReceipt.model_validate(
        world.participant("acme").get(f"{PATH}/models/second").json()["receipt"]
    ).receipt
    assert (receipt.recipe.base_model, receipt.recipe.request, receipt.recipe.parameters.ridge) == (
        "first",
        "head",
        0.01,
    )
    assert receipt.method_version == "head/1"
    assert [answer.organization for answer in receipt.answers] == [
        member.organization for member in receipt.contributions
    ]
    assert len({answer.answer for answer in receipt.answers}) == len(MEMBERS)
    card = file_of(world, "second", "README.md")
    assert "Merged anew from `first`: its head, with statistics that every organization measured" in card
    assert "ridge regression" in card
    (entry_,) = [one for one in json.loads(file_of(world, "second", "diagnostics.json")) if one["method"] == "head"]
    assert (entry_["members"], entry_["rows"]) == (3, 600)
    told = world.participant("acme").get(f"{PATH}/jobs/second/diagnostics").json()
    (layer,) = [one for one in told["layers"] if one["method"] == "head"]
    assert (layer["parameters"], layer["rows"], layer["fallback"]) == ([WEIGHT, BIAS], 600, "none")


def test_a_refit_model_is_refit_again_and_calibrated_and_every_round_is_in_its_receipt(
    world, worker, project, tmp_path
):
    ask(world, "head")
    answer_heads(world, worker, tmp_path)
    assert submit(world).status_code == 201
    worker.run(PROJECT, "second")
    ask(world, "calibration", models=["second"])
    found = [histograms(seed) for seed in range(3)]
    for member, one in zip(MEMBERS, found, strict=True):
        given = give(world, document(world, member, "calibration", histograms=one))
        assert (given.status_code, given.json()["state"]) == (201, "accepted")
    answer = submit(world, "third", merge_method="calibration", base_model="second", request="calibration")
    assert answer.status_code == 201, answer.text
    worker.run(PROJECT, "third")
    second, third = tensors(world, "second"), tensors(world, "third")
    assert {name for name in second if not torch.equal(second[name], third[name])} == {BIAS}
    shifts = choose_shifts(add_histograms(found))
    assert torch.equal(third[BIAS], (second[BIAS].double() + shifts).float())
    card = file_of(world, "third", "README.md")
    assert "Merged anew from `second`: the biases of its head, with counts that every organization measured" in card
    assert f"{int((shifts != 0).sum())} of 3 biases are shifted" in card


def test_a_recipe_that_does_not_fit_the_request_is_refused(world, project):
    ask(world, "head")
    ask(world, "evaluate")
    for changes, code in (
        ({"merge_method": "linear"}, "recipe-invalid"),
        ({"merge_method": "calibration"}, "recipe-invalid"),
        ({"request": None}, "request-malformed"),
        ({"base_model": "other"}, "recipe-invalid"),
        ({"models": [{"model": "acme"}]}, "recipe-invalid"),
        ({"parameters": {"ridge": 0}}, "request-malformed"),
        ({"request": "evaluate"}, "recipe-invalid"),
    ):
        problem(submit(world, **changes), 422, code)
    problem(submit(world), 409, "wrong-state")  # nobody has answered yet


def test_with_frozen_cohorts_another_ridge_over_the_same_answers_is_refused_and_the_same_is_not(
    world, worker, project, tmp_path
):
    ask(world, "head")
    answer_heads(world, worker, tmp_path)
    assert submit(world).status_code == 201
    worker.run(PROJECT, "second")
    problem(submit(world, "third", parameters={"ridge": 0.1}), 409, "cohort-frozen")
    problem(submit(world, "third", parameters={"normalize": "rows"}), 409, "cohort-frozen")
    assert submit(world, "third").status_code == 201


def test_who_missed_the_deadline_is_left_out_where_cohorts_are_open_and_nothing_is_merged_where_they_are_frozen(
    world, worker, tmp_path
):
    changes = {"missed_deadline": "leave_out", "minimum_cohort": 2}
    begin(world, worker, POLICY.model_copy(update=changes))
    ask(world, "head", seconds=3600)
    ask(world, "calibration", seconds=3600)
    answer_heads(world, worker, tmp_path, members=MEMBERS[:2])
    for member in MEMBERS[:2]:
        given = give(world, document(world, member, "calibration", histograms=histograms(0, least=20)))
        assert given.status_code == 201, given.text
    world.clock.advance(hours=2)
    for kind in ("head", "calibration"):
        refused = problem(submit(world, merge_method=kind, request=kind), 409, "cohort-frozen")
        assert refused["facts"]["differs"] == ["initech"]


def test_an_answer_of_a_member_who_withdrew_is_merged_no_more(world, worker, project, tmp_path):
    ask(world, "head")
    answer_heads(world, worker, tmp_path)
    mine = world.participant("acme").get(f"{PATH}/contributions", params={"organization": "acme"}).json()["items"]
    assert world.participant("acme").post(f"{PATH}/contributions/{mine[0]['id']}/withdraw").status_code == 200
    assert submit(world).status_code == 409


# --- calibration answers ---------------------------------------------------------------------------------------------


def test_histograms_of_few_examples_or_of_other_labels_are_refused(world, project):
    ask(world, "calibration")
    for counts, code in (
        (histograms(0, classes=()), "policy-violation"),
        (histograms(0, labels=4), "architecture-mismatch"),
        (few(19), "policy-violation"),
    ):
        problem(give(world, document(world, "acme", "calibration", histograms=counts)), 422, code)
    assert give(world, document(world, "acme", "calibration", histograms=few(20))).status_code == 201


def few(count):
    """One label that so many bear."""
    labelled = [count if number == 70 else 0 for number in range(BINS)]
    classes = [{"label": 1, "labelled": labelled, "others": [1] * BINS}]
    return CalibrationHistograms.model_validate({"score": "margin", "labels": LABELS, "classes": classes})


def test_a_histogram_is_of_counts_that_can_be(world, project):
    ask(world, "calibration")
    answer = document(world, "acme", "calibration", histograms=histograms(0)).model_dump(mode="json")
    for spoil in (-1, 0.5, 2**60, "many"):
        answer["histograms"]["classes"][0]["labelled"][0] = spoil
        sent = world.participant("acme").put(f"{REQUESTS}/calibration/answers/acme", content=json.dumps(answer))
        problem(sent, 422, "document-malformed")


def test_a_calibration_is_given_once_and_seen_by_nobody_else(world, project):
    ask(world, "calibration")
    answer = document(world, "acme", "calibration", histograms=histograms(0))
    assert give(world, answer).status_code == 201
    assert give(world, answer).status_code == 200
    problem(give(world, document(world, "acme", "calibration", histograms=histograms(1))), 409, "conflict")
    seen = world.participant("globex").get(f"{REQUESTS}/calibration")
    assert "histograms" not in seen.text
    problem(world.participant("globex").get(f"{REQUESTS}/calibration/answers/acme"), 403, "role-required")
    own = world.participant("acme").get(f"{REQUESTS}/calibration/answers/acme").json()
    assert own["answer"]["histograms"] == answer.histograms.model_dump(mode="json")


def test_a_withdrawal_forgets_what_was_counted_and_not_the_metrics_that_all_have_seen(world, project):
    ask(world, "calibration")
    ask(world, "evaluate")
    scores = [{"model": "first", "examples": 100, "metrics": {"f1": 0.5}}]
    assert give(world, document(world, "acme", "evaluate", scores=scores)).status_code == 201
    for member in ("acme", "globex"):
        assert give(world, document(world, member, "calibration", histograms=histograms(0))).status_code == 201
    mine = world.participant("acme").get(f"{PATH}/contributions", params={"organization": "acme"}).json()["items"]
    assert world.participant("acme").post(f"{PATH}/contributions/{mine[0]['id']}/withdraw").status_code == 200
    own = world.participant("acme").get(f"{REQUESTS}/calibration/answers/acme").json()
    assert (own["state"], own["answer"]) == ("awaited", None)
    states = [
        [place["state"] for place in world.participant("globex").get(f"{REQUESTS}/{kind}").json()["asked"]]
        for kind in ("calibration", "evaluate")
    ]
    assert states == [["awaited", "accepted", "awaited"], ["accepted", "awaited", "awaited"]]


def test_a_label_that_fewer_than_a_cohort_counted_is_not_shifted(world, worker, project):
    ask(world, "calibration")
    for seed, member in enumerate(MEMBERS):
        counted = histograms(seed, classes=(0, 1, 2) if seed else (0, 1))
        assert give(world, document(world, member, "calibration", histograms=counted)).status_code == 201
    submit(world, merge_method="calibration", request="calibration")
    worker.run(PROJECT, "second")
    first, second = tensors(world, "first"), tensors(world, "second")
    assert second[BIAS][2] == first[BIAS][2]
    assert second[BIAS][0] != first[BIAS][0]


def test_histograms_of_as_many_labels_as_may_be_calibrated_fit_into_an_answer():
    from gramfuse_shared import limits  # noqa: PLC0415 - read here only

    largest = {"labelled": (limits.MAX_ROWS,) * BINS, "others": (limits.MAX_ROWS,) * BINS}
    classes = [{"label": label} | largest for label in range(limits.MAX_CALIBRATED_LABELS)]
    document_ = {"score": "logit", "labels": limits.MAX_CALIBRATED_LABELS, "classes": classes}
    raw = CalibrationHistograms.model_validate(document_).canonical()
    assert len(raw) < limits.MAX_DOCUMENT_BYTES
