"""A policy's release gate: what is held back, from whom, until when; through the API, the SDK and the command line."""

import pytest

from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.errors import ModelNotReleasedError
from support.answers import REQUESTS, give_scores
from support.client_world import Site
from support.server_world import OPEN_POLICY, problem
from support.shell import Shell
from support.worker_world import MEMBERS, merge_everybody

PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"
MODEL = f"{PATH}/models/regmean-1"
GATED = OPEN_POLICY.model_copy(
    update={
        "cohorts": "frozen",
        "requests": ("evaluate", "gram"),
        "minimum_evaluation_examples": 50,
        "release": ReleaseGate(metric="f1", mean=0.6, behind_own=0.02),
    }
)
GOOD = {"acme": (0.5, 0.6), "globex": (0.6, 0.6), "initech": (0.5, 0.7)}
"""Of each organization its own model's f1, and the merged one's."""
BAD = GOOD | {"globex": (0.7, 0.6)}


def begin_gated(world, settings):
    merge_everybody(world, settings, policy=GATED)


@pytest.fixture
def world(begun):
    opened, _ = begun(begin_gated)
    return opened


def ask(world, request="eval-1", *, kind="evaluate", **changes):
    body = {"kind": kind, "models": ["regmean-1"]} | changes
    assert world.coordinator("acme").put(f"{REQUESTS}/{request}", json=body).status_code == 201


def evaluate(world, numbers, request="eval-1"):
    ask(world, request)
    for member, (own, merged) in numbers.items():
        assert give(world, member, own, merged, request).status_code == 201


def give(world, member, own, merged, request="eval-1"):
    return give_scores(world, request, member, {None: {"f1": own}, "regmean-1": {"f1": merged}})


def fetch(world, member, file="model.safetensors", *, method="GET"):
    return world.participant(member).request(method, f"{MODEL}/files/{file}")


def release(world, *, by="globex"):
    return world.participant(by).get(MODEL).json()["release"]


def test_nobody_gets_a_candidates_files_not_even_the_coordinator_and_everybody_sees_why(world):
    for member in MEMBERS:
        for file in ("model.safetensors", "receipt.json", "README.md"):
            refused = problem(fetch(world, member, file), 409, "model-not-released")
            assert fetch(world, member, file, method="HEAD").status_code == 409
    assert "nobody was asked to evaluate it" in refused["detail"]
    assert "`gramfuse request create acme.tweets evaluate regmean-1`" in refused["detail"]
    found = release(world)
    assert (found["state"], found["gate"]) == ("candidate", {"metric": "f1", "mean": 0.6, "behind_own": 0.02})
    listed = world.participant("initech").get(f"{PATH}/models").json()["items"]
    assert [model["release"] for model in listed] == [found]


def test_who_is_asked_gets_it_until_the_answer_is_in_and_everybody_once_the_gate_is_passed(world):
    ask(world)
    for member, (own, merged) in GOOD.items():
        assert fetch(world, member).status_code == 200
        assert give(world, member, own, merged).status_code == 201
        if member != "initech":
            assert "eval-1: it is open until" in problem(fetch(world, member), 409, "model-not-released")["detail"]
    assert {fetch(world, member).status_code for member in MEMBERS} == {200}
    assert release(world)["state"] == "released"
    assert release(world)["request"] == "eval-1"


def test_scores_that_do_not_pass_hold_it_back_by_name_and_number_until_others_do(world):
    evaluate(world, BAD)
    reason = "eval-1: at globex its f1 0.6000 is behind the 0.7000 of the own model by 0.1000, more than 0.02"
    assert release(world)["reason"] == reason
    assert reason in problem(fetch(world, "acme"), 409, "model-not-released")["detail"]
    evaluate(world, GOOD, "eval-2")
    assert fetch(world, "acme").status_code == 200
    evaluate(world, BAD, "eval-3")
    assert release(world)["request"] == "eval-2"


def test_a_deadline_that_passes_closes_the_model_again(world):
    ask(world, seconds=3600)
    assert fetch(world, "globex").status_code == 200
    world.clock.advance(hours=2)
    assert "eval-1: it failed" in problem(fetch(world, "globex"), 409, "model-not-released")["detail"]


def test_a_request_to_measure_a_candidate_hands_it_out_too_and_releases_nothing(world):
    ask(world, "gram-1", kind="gram")
    assert fetch(world, "globex").status_code == 200
    assert release(world)["state"] == "candidate"


def test_no_later_policy_opens_the_gate_that_the_contributors_accepted(world):
    later = GATED.model_copy(update={"release": None})
    assert world.coordinator("acme").put_document(f"{PATH}/policies/2", later).status_code == 201
    problem(fetch(world, "acme"), 409, "model-not-released")
    for member in MEMBERS:
        world.accept_policy(PROJECT, member)
    problem(fetch(world, "acme"), 409, "model-not-released")
    evaluate(world, GOOD)
    assert fetch(world, "acme").status_code == 200


def test_a_candidate_freezes_its_cohort_as_a_release_does(world):
    recipe = {"merge_method": "linear", "models": [{"model": "acme"}, {"model": "globex"}]}
    refused = world.coordinator("acme").put(f"{PATH}/jobs/second", json={"recipe": recipe})
    problem(refused, 409, "cohort-frozen")


def test_an_evaluation_that_the_gate_cannot_read_is_not_taken(world):
    ask(world)
    alone = give_scores(world, "eval-1", "acme", {"regmean-1": {"f1": 0.9}})
    assert "name your own (model)" in problem(alone, 422, "policy-violation")["detail"]
    other = give_scores(world, "eval-1", "acme", {None: {"loss": 1.0}, "regmean-1": {"loss": 0.9}})
    assert "the policy goes by f1" in problem(other, 422, "policy-violation")["detail"]


def test_strangers_learn_nothing_of_a_candidate(world):
    world.organization("hooli")
    problem(world.coordinator("hooli").get(f"{MODEL}/files/README.md"), 404, "not-found")


def test_the_command_line_says_that_a_model_is_a_candidate_what_is_missing_and_that_it_passed(
    world, tmp_path, monkeypatch, capsys
):
    acme = Shell(Site(world, "acme", "coordinator", tmp_path), monkeypatch, capsys)
    assert "candidate" in acme("model", "list", PROJECT)[1]
    code, _, err = acme("model", "pull", PROJECT, "regmean-1", str(tmp_path / "merged"))
    assert code == 3
    assert "nobody was asked to evaluate it" in " ".join(err.split())
    assert list(tmp_path.glob("merged*")) == []
    assert "**Candidate**, not released: nobody was asked" in acme("model", "report", PROJECT, "regmean-1")[1]

    ask(world)
    with acme.site.client() as client:
        with pytest.raises(ModelNotReleasedError, match="eval-1: it is open"):
            client.pull(PROJECT, "regmean-1", tmp_path / "merged")
        held = client.pull(PROJECT, "regmean-1", tmp_path / "for the answer", to_answer=True)
    card = (held / "README.md").read_text("utf-8")
    assert "The policy holds it back until evaluations say that the mean of its f1 over its cohort" in card
    attach = ("model", "attach-head", str(held), str(tmp_path / "mine"), "--head-from", str(tmp_path / "tuned"))
    code, _, err = acme(*attach)
    assert code == 3
    assert "is a candidate" in err

    for member, (own, merged) in BAD.items():
        give(world, member, own, merged)
    assert "regmean-1 stays a candidate: eval-1: at globex" in acme("request", "show", PROJECT, "eval-1")[1]
    evaluate(world, GOOD, "eval-2")
    assert "regmean-1 is released: eval-2 passed" in acme("request", "wait", PROJECT, "eval-2")[1]
    assert "**Released**: eval-2 passed." in acme("model", "report", PROJECT, "regmean-1")[1]
    assert "released" in acme("model", "list", PROJECT)[1]
    assert acme("model", "pull", PROJECT, "regmean-1", str(tmp_path / "merged"))[0] == 0
