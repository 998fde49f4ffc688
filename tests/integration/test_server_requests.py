"""Requests through the public API: asking, answering with and without files, deadlines, refusals."""

import json

import pytest
import torch
from safetensors.torch import load, save

from gramfuse_server.database import reading
from gramfuse_server.tables import UploadRow
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name
from gramfuse_shared.fusion.packing import pack
from support.answers import REQUESTS, give, send
from support.questions import (
    ALLOWING,
    COLLECTOR,
    ask,
    begin_merged,
    evaluation,
    publish_policy,
    scores,
    statistics,
)
from support.server_world import make_tap, problem
from support.worker_world import MEMBERS, InProcessWorker, be_ready, contribute, make_gram, make_weights

PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"


@pytest.fixture
def merged(begun):
    """A project with the model `first`, whose policy allows requests; and a worker."""
    world, settings = begun(begin_merged)
    return world, InProcessWorker(world, settings)


def look(world, identifier="eval-1", *, by="globex"):
    return world.participant(by).get(f"{REQUESTS}/{identifier}").json()


def states(world, identifier="eval-1"):
    return {place["organization"]: place["state"] for place in look(world, identifier)["asked"]}


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_request_asks_every_organization_of_the_models_cohort(merged):
    world, _ = merged
    made = ask(world).json()
    assert (made["state"], made["kind"], made["models"]) == ("open", "evaluate", ["first"])
    assert [place["organization"] for place in made["asked"]] == sorted(MEMBERS)
    assert {place["state"] for place in made["asked"]} == {"awaited"}
    listed = world.participant("initech").get(REQUESTS).json()["items"]
    assert [request["id"] for request in listed] == ["eval-1"]


def test_the_same_request_again_is_the_same_one_and_another_under_its_id_is_refused(merged):
    world, _ = merged
    first = ask(world).json()
    assert ask(world, status=200).json() == first
    problem(ask(world, status=409, seconds=3600), 409, "conflict")


def test_a_request_says_whose_blocks_are_measured_and_only_where_it_is_not_the_merged_models(merged):
    world, _ = merged
    layers = ["encoder.layer.0.dense.weight"]
    assert "block" not in ask(world, "gram-1", kind="gram", layers=layers).json()
    assert ask(world, "gram-2", kind="gram", layers=layers, block="own").json()["block"] == "own"
    problem(ask(world, "gram-1", kind="gram", layers=layers, block="own", status=409), 409, "conflict")
    nameless = ask(world, "gram-3", kind="gram", block="own", status=422)
    problem(nameless, 422, "request-malformed")
    assert "block: own names the layers" in nameless.text


def test_a_request_says_what_rows_count_by_and_an_answer_weighted_in_another_way_is_refused(merged):
    world, _ = merged
    assert "weighting" not in ask(world, "gram-1", kind="gram").json()
    asked = ask(world, "gram-2", kind="gram", weighting="output_gradient").json()
    assert asked["weighting"] == "output_gradient"
    answer, _ = statistics(world, "initech", "gram-2")
    refused = give(world, answer)
    problem(refused, 422, "request-malformed")
    assert "the rows were weighted by none, asked for is output_gradient" in refused.text
    weighted = ask(world, "evaluate-2", weighting="output_gradient", status=422)
    assert "weights nothing" in weighted.text


def test_only_the_coordinator_asks_and_takes_back(merged):
    world, _ = merged
    ask(world)
    body = {"kind": "evaluate", "models": ["first"]}
    problem(world.participant("globex").put(f"{REQUESTS}/other", json=body), 403, "role-required")
    problem(world.coordinator("globex").put(f"{REQUESTS}/other", json=body), 403, "role-required")
    problem(world.participant("globex").post(f"{REQUESTS}/eval-1/cancel"), 403, "role-required")


def test_strangers_see_nothing(merged):
    world, _ = merged
    ask(world)
    stranger = world.organization("hooli")
    for path in (REQUESTS, f"{REQUESTS}/eval-1", f"{REQUESTS}/eval-1/answers/acme"):
        problem(stranger.get(path), 404, "not-found")


def test_by_default_a_policy_lets_nothing_be_asked(ready):
    world, worker = ready
    world.coordinator("acme").put(f"{PATH}/jobs/first", json={"recipe": {"merge_method": "linear"}})
    worker.run(PROJECT, "first")
    document = problem(ask(world, status=422), 422, "policy-violation")
    assert "allows no requests" in document["detail"]


def test_a_request_is_about_models_that_exist(merged):
    world, _ = merged
    problem(ask(world, status=404, models=["none"]), 404, "not-found")
    world.coordinator("acme").delete(f"{PATH}/models/first")
    problem(ask(world, "eval-2", status=404), 404, "not-found")


@pytest.mark.parametrize(
    "body",
    [
        {"models": []},
        {"models": ["first", "first"]},
        {"kind": "gram", "models": ["first", "second"]},
        {"layers": ["encoder.query.weight"]},
        {"kind": "execute"},
        {"seconds": 1},
        {"code": "print()"},
    ],
)
def test_what_no_client_could_answer_is_not_asked(merged, body):
    world, _ = merged
    problem(ask(world, status=422, **body), 422, "request-malformed")


def test_a_cancelled_request_takes_no_answers(merged):
    world, _ = merged
    ask(world)
    cancelled = world.coordinator("acme").post(f"{REQUESTS}/eval-1/cancel")
    assert cancelled.json()["state"] == "cancelled"
    assert world.coordinator("acme").post(f"{REQUESTS}/eval-1/cancel").status_code == 200
    problem(give(world, evaluation(world, "acme")), 409, "wrong-state")


def test_what_is_over_is_not_taken_back(merged):
    world, _ = merged
    ask(world)
    for member in MEMBERS:
        assert give(world, evaluation(world, member)).status_code == 201
    problem(world.coordinator("acme").post(f"{REQUESTS}/eval-1/cancel"), 409, "wrong-state")


# --- answering -------------------------------------------------------------------------------------------------------


def test_once_everybody_answered_the_request_is_complete_and_all_see_the_metrics(merged):
    world, _ = merged
    ask(world)
    for number, member in enumerate(MEMBERS):
        assert look(world)["state"] == "open"
        given = give(world, evaluation(world, member, scores=scores("first", None, f1=number / 10)))
        assert (given.status_code, given.json()["state"]) == (201, "accepted")
    seen = look(world, by="initech")
    assert seen["state"] == "complete"
    assert [place["scores"][0]["metrics"]["f1"] for place in seen["asked"]] == [0.0, 0.1, 0.2]


def test_an_answer_is_given_once(merged):
    world, _ = merged
    ask(world)
    assert give(world, evaluation(world, "acme")).status_code == 201
    assert give(world, evaluation(world, "acme")).status_code == 200
    problem(give(world, evaluation(world, "acme", scores=scores("first", f1=0.9))), 409, "conflict")


def test_nobody_answers_for_another(merged):
    world, _ = merged
    ask(world)
    problem(give(world, evaluation(world, "acme"), by="globex"), 403, "role-required")
    problem(world.participant("globex").get(f"{REQUESTS}/eval-1/answers/acme"), 403, "role-required")


def test_an_answer_to_another_request_is_refused(merged):
    world, _ = merged
    ask(world)
    ask(world, "eval-2")
    problem(give(world, evaluation(world, "acme", "eval-2"), to="eval-1"), 422, "request-malformed")
    other = evaluation(world, "acme", project="acme.other")
    problem(give(world, other), 422, "request-malformed")


@pytest.mark.parametrize(
    "given",
    [scores(), scores("second"), scores("first", "second"), scores("first", "first"), scores("first", None, None)],
)
def test_an_evaluation_scores_what_was_asked(merged, given):
    world, _ = merged
    ask(world)
    problem(give(world, evaluation(world, "acme", scores=given)), 422, "request-malformed")


@pytest.mark.parametrize("metrics", [{"f1": "NaN"}, {"f1": 1e999}, {"secret text": 1.0}, {}])
def test_metrics_are_finite_numbers_under_known_names(merged, metrics):
    world, _ = merged
    ask(world)
    document = evaluation(world, "acme").model_dump(mode="json")
    document["scores"][0]["metrics"] = metrics
    answer = world.participant("acme").put(f"{REQUESTS}/eval-1/answers/acme", content=json.dumps(document))
    problem(answer, 422, "document-malformed")


def test_an_evaluation_on_few_examples_is_refused(merged):
    world, _ = merged
    ask(world)
    answer = give(world, evaluation(world, "acme", scores=scores("first", examples=49)))
    assert "minimum_evaluation_examples" in problem(answer, 422, "policy-violation")["detail"]


def test_an_answer_needs_the_current_policy_accepted_and_named(merged):
    world, _ = merged
    ask(world)
    old = evaluation(world, "acme")
    changed = ALLOWING.model_copy(update={"minimum_evaluation_examples": 60})
    version = world.coordinator("acme").get(PATH).json()["policy"]["version"] + 1
    world.coordinator("acme").put(f"{PATH}/policies/{version}", json=changed.model_dump(mode="json"))
    problem(give(world, old), 409, "policy-not-accepted")
    world.accept_policy(PROJECT, "acme")
    problem(give(world, old), 409, "policy-not-accepted")
    assert give(world, evaluation(world, "acme")).status_code == 201


def test_who_was_not_asked_has_nothing_to_answer(merged):
    world, _ = merged
    ask(world)
    world.organization("hooli")
    world.coordinator("acme").put(f"{PATH}/participants/hooli")
    world.accept_policy(PROJECT, "hooli")
    problem(give(world, evaluation(world, "hooli")), 404, "not-found")


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_missed_deadline_fails_the_request_and_late_answers_are_refused(merged):
    world, _ = merged
    ask(world, seconds=3600)
    assert give(world, evaluation(world, "acme")).status_code == 201
    world.clock.advance(hours=2)
    seen = look(world)
    assert (seen["state"], seen["reason"]) == ("failed", "globex, initech missed the deadline")
    problem(give(world, evaluation(world, "globex")), 409, "wrong-state")


def test_who_misses_the_deadline_is_left_out_where_the_policy_says_so(merged):
    world, _ = merged
    publish_policy(world, ALLOWING.model_copy(update={"missed_deadline": "leave_out"}))
    ask(world, seconds=3600)
    for member in ("acme", "initech"):
        assert give(world, evaluation(world, member)).status_code == 201
    world.clock.advance(hours=2)
    seen = look(world)
    assert (seen["state"], seen["reason"]) == ("complete", "without globex, who missed the deadline")


def test_a_file_sealed_in_time_counts_when_it_is_checked_after_the_deadline(merged):
    world, worker = merged
    ask(world, "gram-1", kind="gram", seconds=3600)
    for member in MEMBERS:
        assert send(world, *statistics(world, member)).status_code == 200
    world.clock.advance(hours=2)
    assert look(world, "gram-1")["state"] == "open"
    assert worker.inspect_all() == ["accepted"] * 3
    assert look(world, "gram-1")["state"] == "complete"


def test_a_file_that_is_not_sealed_in_time_is_too_late(merged):
    world, _ = merged
    ask(world, "gram-1", kind="gram", seconds=3600)
    answer, file = statistics(world, "acme")
    announced = give(world, answer)
    world.participant("acme").put_files(
        f"{REQUESTS}/gram-1/answers/acme", announced.json(), {"statistics.safetensors": file}
    )
    world.clock.advance(hours=2)
    problem(world.participant("acme").post(f"{REQUESTS}/gram-1/answers/acme/seal"), 409, "wrong-state")


# --- answers with files ----------------------------------------------------------------------------------------------


def test_statistics_are_uploaded_like_a_contribution_and_checked_by_a_worker(merged):
    world, worker = merged
    ask(world, "gram-1", kind="gram", layers=["encoder.query.weight"])
    answer, file = statistics(world, "acme")
    assert send(world, answer, file).json()["state"] == "sealed"
    assert worker.inspect_all() == ["accepted"]
    assert states(world, "gram-1") == {"acme": "accepted", "globex": "awaited", "initech": "awaited"}
    own = world.participant("acme").get(f"{REQUESTS}/gram-1/answers/acme").json()
    assert own["answer"]["statistics"]["file"]["sha256"] == answer.statistics.file.sha256
    seen = world.participant("globex").get(f"{REQUESTS}/gram-1").json()["asked"][0]
    assert seen == {"organization": "acme", "state": "accepted", "reason": None, "scores": []}


def test_what_is_no_gram_matrix_is_rejected_and_may_be_sent_again(merged):
    world, worker = merged
    ask(world, "gram-1", kind="gram")
    bad = save(
        {gram_tensor_name("encoder.query"): pack(-make_gram(1))},
        metadata={METADATA_KEY: StatisticsMetadata(collector=COLLECTOR, taps=(make_tap(),)).model_dump_json()},
    )
    assert send(world, *statistics(world, "acme", content=bad)).status_code == 200
    assert worker.inspect_all() == ["rejected"]
    assert world.participant("acme").get(f"{REQUESTS}/gram-1").json()["asked"][0]["reason"].startswith("statistics-")
    assert look(world, "gram-1", by="globex")["asked"][0]["reason"] is None
    assert send(world, *statistics(world, "acme")).status_code == 200
    assert worker.inspect_all() == ["accepted"]


@pytest.mark.parametrize(
    ("tap", "status", "code"),
    [
        (make_tap(source="embeddings"), 422, "policy-violation"),
        (make_tap(distinct_rows=1), 422, "policy-violation"),
        (make_tap(layers=[{"weight": "encoder.key.weight"}]), 422, "architecture-mismatch"),
    ],
)
def test_statistics_that_the_policy_or_the_request_does_not_allow_never_travel(merged, tap, status, code):
    world, _ = merged
    ask(world, "gram-1", kind="gram", layers=["encoder.query.weight"])
    before = world.stored_keys()
    answer, _ = statistics(world, "acme", tap=tap)
    problem(give(world, answer), status, code)
    assert world.stored_keys() == before


def test_statistics_of_a_head_that_stays_private_stay_too(merged):
    world, _ = merged
    ask(world, "gram-1", kind="gram")
    answer, _ = statistics(world, "acme", tap=make_tap(layers=[{"weight": "classifier.weight"}]))
    refused = problem(give(world, answer), 422, "policy-violation")
    assert "none of the weights that read it leaves" in refused["detail"]


def test_metrics_do_not_answer_a_request_for_statistics_nor_the_other_way_round(merged):
    world, _ = merged
    ask(world, "gram-1", kind="gram")
    ask(world)
    problem(give(world, evaluation(world, "acme", "gram-1")), 422, "request-malformed")
    problem(give(world, statistics(world, "acme", "eval-1")[0]), 422, "request-malformed")


def test_a_withdrawn_contribution_takes_its_organizations_answers_with_it(merged):
    world, worker = merged
    ask(world, "gram-1", kind="gram")
    send(world, *statistics(world, "acme"))
    assert worker.inspect_all() == ["accepted"]
    contribution = next(
        item["id"]
        for item in world.participant("acme")
        .get(f"{PATH}/contributions", params={"organization": "acme"})
        .json()["items"]
    )
    assert world.participant("acme").post(f"{PATH}/contributions/{contribution}/withdraw").status_code == 200
    assert states(world, "gram-1")["acme"] == "withdrawn"
    with reading(world.services.database) as session:
        upload = session.query(UploadRow).filter_by(kind="answer").one()
        assert upload.delete_after is not None


def test_everything_stands_in_the_audit_log(merged):
    world, worker = merged
    ask(world, "gram-1", kind="gram")
    send(world, *statistics(world, "acme"))
    worker.inspect_all()
    world.coordinator("acme").post(f"{REQUESTS}/gram-1/cancel")
    entries = world.operator.get("/v1/admin/audit-log").json()["items"]
    actions = [entry["action"] for entry in reversed(entries) if entry["subject"] == f"{PROJECT}/gram-1"]
    assert actions == ["request.create", "answer.create", "answer.seal", "answer.accept", "request.cancel"]


def test_policies_without_the_newer_fields_keep_their_digest():
    assert "requests" not in Policy().model_dump(mode="json")
    assert "minimum_evaluation_examples" not in Policy().model_dump(mode="json")


# --- merging with the answers ----------------------------------------------------------------------------------------

ANEW = {"merge_method": "regmean", "base_model": "first", "request": "gram-1"}


def submit(world, job="second", **changes):
    recipe = {key: value for key, value in (ANEW | changes).items() if value is not None}
    return world.coordinator("acme").put(f"{PATH}/jobs/{job}", json={"recipe": recipe})


def contribute_under(world, worker, policy, model):
    """A new version of the policy, under which everybody contributes again and a model is the mean of that."""
    publish_policy(world, policy)
    project = world.coordinator("acme").get(PATH).json()
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    worker.inspect_all()
    world.coordinator("acme").put(f"{PATH}/jobs/{model}", json={"recipe": {"merge_method": "linear"}})
    worker.run(PROJECT, model)


def begin_answered(world, settings):
    be_ready(world, settings)
    worker = InProcessWorker(world, settings)
    contribute_under(world, worker, ALLOWING, "first")
    ask(world, "gram-1", kind="gram", seconds=3600)
    for seed, member in enumerate(MEMBERS):
        send(world, *statistics(world, member, seed=seed))
    assert worker.inspect_all() == ["accepted"] * 3


@pytest.fixture
def answered(begun):
    """A project whose policy allows requests, with the model `first` and everybody's statistics of it; and a worker."""
    world, settings = begun(begin_answered)
    return world, InProcessWorker(world, settings)


def tensors(world, model):
    stored = world.participant("globex").get(f"{PATH}/models/{model}/files/model.safetensors")
    return load(stored.content)


def test_a_model_is_merged_anew_where_the_answers_have_statistics_and_stays_as_it_is_elsewhere(answered):
    world, worker = answered
    assert submit(world).status_code == 201
    worker.run(PROJECT, "second")
    assert submit(world, "third", base_model="second").status_code == 422  # the request is about `first`
    first, second = tensors(world, "first"), tensors(world, "second")
    assert {name for name in first if not torch.equal(first[name], second[name])} == {"encoder.query.weight"}
    precisions = [0.9 * gram + 0.1 * gram.diag().diag() for gram in map(make_gram, range(3))]
    weights = [load(make_weights(seed))["encoder.query.weight"] for seed in range(3)]
    total = sum(precisions).double()
    products = sum(weight.double() @ precision.double() for weight, precision in zip(weights, precisions, strict=True))
    expected = torch.linalg.solve(total, products.T).T
    torch.testing.assert_close(second["encoder.query.weight"].double(), expected, atol=1e-5, rtol=1e-4)
    receipt = world.participant("acme").get(f"{PATH}/models/second").json()["receipt"]["receipt"]
    assert (receipt["recipe"]["base_model"], receipt["recipe"]["request"]) == ("first", "gram-1")
    assert len(receipt["answers"]) == 3


def test_what_is_merged_anew_keeps_the_dtype_that_it_was_written_in(answered):
    world, worker = answered
    recipe = {"merge_method": "linear", "out_dtype": "bfloat16"}
    assert world.coordinator("acme").put(f"{PATH}/jobs/half", json={"recipe": recipe}).status_code == 201
    worker.run(PROJECT, "half")
    ask(world, "gram-2", kind="gram", models=["half"])
    for seed, member in enumerate(MEMBERS):
        send(world, *statistics(world, member, "gram-2", seed=seed))
    worker.inspect_all()
    assert submit(world, base_model="half", request="gram-2").status_code == 201
    worker.run(PROJECT, "second")
    assert {str(tensor.dtype) for tensor in tensors(world, "second").values() if tensor.is_floating_point()} == {
        "torch.bfloat16"
    }
    half, second = (world.participant("globex").get(f"{PATH}/models/{name}").json() for name in ("half", "second"))
    digests = [{file["name"]: file["sha256"] for file in model["files"]} for model in (half, second)]
    assert digests[0]["config.json"] == digests[1]["config.json"]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"request": "none"}, 404, "not-found"),
        ({"base_model": "other"}, 422, "recipe-invalid"),
        ({"base_model": None}, 422, "recipe-invalid"),
        ({"merge_method": "linear"}, 422, "recipe-invalid"),
        ({"models": [{"model": "acme"}]}, 422, "recipe-invalid"),
    ],
)
def test_a_recipe_that_does_not_fit_its_request_is_refused(answered, changes, status, code):
    world, _ = answered
    problem(submit(world, **changes), status, code)


def test_metrics_are_not_merged(answered):
    world, _ = answered
    ask(world)
    for member in MEMBERS:
        give(world, evaluation(world, member))
    problem(submit(world, request="eval-1"), 422, "recipe-invalid")


def test_an_open_request_is_not_merged_yet(answered):
    world, _ = answered
    ask(world, "gram-2", kind="gram")
    problem(submit(world, request="gram-2"), 409, "wrong-state")


def test_a_model_whose_files_are_gone_is_not_merged_anew(answered):
    world, _ = answered
    world.coordinator("acme").delete(f"{PATH}/models/first")
    problem(submit(world), 404, "not-found")


def test_a_cohort_of_which_somebody_withdrew_is_not_merged_anew(answered):
    world, _ = answered
    mine = world.participant("acme").get(f"{PATH}/contributions", params={"organization": "acme"}).json()["items"]
    newest = next(item["id"] for item in mine if item["counts"])
    assert world.participant("acme").post(f"{PATH}/contributions/{newest}/withdraw").status_code == 200
    assert submit(world).status_code == 409


def test_who_was_left_out_of_the_answers_is_left_out_of_the_merge(answered):
    world, worker = answered
    contribute_under(world, worker, ALLOWING.model_copy(update={"missed_deadline": "leave_out"}), "again")
    ask(world, "gram-2", kind="gram", models=["again"], seconds=3600)
    for seed, member in enumerate(MEMBERS[:2]):
        send(world, *statistics(world, member, "gram-2", seed=seed))
    worker.inspect_all()
    world.clock.advance(hours=2)
    submitted = submit(world, base_model="again", request="gram-2").json()
    assert [member["organization"] for member in submitted["cohort"]] == ["acme", "globex"]
    worker.run(PROJECT, "second")
    assert len(world.participant("acme").get(f"{PATH}/models/second").json()["receipt"]["receipt"]["answers"]) == 2
