"""`gramfuse model report`: what a model's card says, its layers, and the scores that came after it."""

import pytest

from support.answers import give_scores
from support.client_world import Site
from support.server_world import OPEN_POLICY
from support.shell import Shell
from support.worker_world import MEMBERS, merge_everybody

PROJECT = "acme.tweets"
ALLOWING = OPEN_POLICY.model_copy(update={"requests": ("evaluate",), "minimum_evaluation_examples": 50})


@pytest.fixture
def acme(world, tmp_path, monkeypatch, capsys):
    return Shell(Site(world, "acme", "coordinator", tmp_path), monkeypatch, capsys)


@pytest.fixture
def merged(world, settings, acme):
    return merge_everybody(world, settings, policy=ALLOWING)


def evaluate(world, request, scores, *, models=("regmean-1",)):
    """Ask for scores and have every member answer with its own."""
    path = f"/v1/projects/{PROJECT}/requests/{request}"
    body = {"kind": "evaluate", "models": list(models)}
    assert world.coordinator("acme").put(path, json=body).status_code == 201
    for member, given in scores.items():
        put = give_scores(world, request, member, dict(given))
        assert put.status_code == 201, put.text


def test_where_the_policy_allows_no_evaluation_the_report_advises_none(acme, world, settings):
    merged = merge_everybody(world, settings)
    code, out, _ = acme("model", "report", PROJECT, merged)
    assert (code, "request create" in out) == (0, False)
    assert "the policy's `requests` allow none" in out


def test_before_anybody_evaluated_it_the_report_says_how_to_ask(acme, merged):
    code, out, _ = acme("model", "report", PROJECT, merged)
    assert code == 0
    assert out.startswith(f"# {PROJECT} · {merged}\n")
    assert f"`gramfuse request create {PROJECT} evaluate {merged}`" in out
    assert "### Gained least" in out
    assert "`encoder.query.weight`" in out


def test_the_tables_of_complete_evaluations_are_in_it_before_beside_after(acme, world, merged, tmp_path):
    numbers = {"acme": (0.5, 0.6), "globex": (0.7, 0.65), "initech": (0.3, 0.55)}
    given = {
        member: [(None, {"f1": own, "loss": 1.0}), (merged, {"f1": after, "loss": 0.5})]
        for member, (own, after) in numbers.items()
    }
    evaluate(world, "eval-1", given)
    evaluate(world, "eval-2", {"acme": given["acme"]})  # not complete
    code, out, _ = acme("model", "report", PROJECT, merged, "--out", str(tmp_path / "report.md"))
    assert (code, out) == (0, f"{merged}: reported in {tmp_path / 'report.md'}\n")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "### f1 (eval-1, " in text
    assert "| globex | 100 | 0.7000 | 0.6500 | -0.0500 |" in text
    assert "| mean |  | 0.5000 | 0.6000 | +0.1000 |" in text
    assert "### loss (eval-1" in text
    assert "Less is better." in text
    assert "eval-2" not in text


def test_who_scored_the_merged_model_alone_has_no_change_and_there_is_no_mean(acme, world, merged):
    given = {member: [(merged, {"f1": 0.5})] for member in MEMBERS}
    given["acme"].insert(0, (None, {"f1": 0.25}))
    evaluate(world, "eval-1", given)
    _, out, _ = acme("model", "report", PROJECT, merged)
    assert "| acme | 100 | 0.2500 | 0.5000 | +0.2500 |" in out
    assert "| globex | 100 | – | 0.5000 | – |" in out
    assert "| mean |" not in out


def test_as_json_it_has_the_documents(acme, world, merged):
    evaluate(world, "eval-1", {member: [(merged, {"f1": 0.5})] for member in MEMBERS})
    found = acme.json("model", "report", PROJECT, merged)
    assert found["model"]["id"] == merged
    assert found["diagnostics"]["complete"]
    assert [request["id"] for request in found["evaluations"]] == ["eval-1"]


def test_a_report_outlives_the_models_files_and_names_who_withdrew(acme, world, merged):
    contributions = world.participant("globex").get(f"/v1/projects/{PROJECT}/contributions").json()["items"]
    mine = next(c["id"] for c in contributions if c["organization"] == "globex")
    world.participant("globex").post(f"/v1/projects/{PROJECT}/contributions/{mine}/withdraw")
    assert acme("model", "delete", PROJECT, merged, "--yes")[0] == 0
    code, out, _ = acme("model", "report", PROJECT, merged)
    assert code == 0
    assert "Withdrawn since: globex." in out
    assert "Its files were deleted on " in out
