"""Requests on real processes: merged models are evaluated and merged anew with everybody's answers (RegMean++)."""

import json
import random

import pytest
import torch
import yaml
from safetensors.torch import load_file

import gramfuse
from gramfuse.answering.configuration import read_participation
from gramfuse.answering.participating import participate
from gramfuse_shared.errors import ModelNotReleasedError
from support import collaboration
from support.collaboration import Collaboration

ORGANIZATIONS = ("acme", "globex", "initech")
POLICY = gramfuse.Policy(
    heads="shared",
    minimum_rows_per_dimension=1,
    requests=("evaluate", "gram"),
    minimum_evaluation_examples=20,
    release=gramfuse.ReleaseGate(metric="f1", behind_own=1.0),  # any score passes; without one a model is a candidate
)
LAYERS = ("bert.encoder.layer.1.intermediate.dense.weight", "bert.encoder.layer.1.output.dense.weight")


@pytest.fixture
def merged(deployment, request) -> Collaboration:
    """A project with the model `first`, whose participants have held-out texts and a configuration."""
    suffix = f"{random.Random(request.node.name).randrange(10**6)}"
    made = collaboration.begin(deployment, [f"{name}{suffix}" for name in ORGANIZATIONS], policy=POLICY)
    collaboration.contribute(made)
    for desk in made.desks:
        lines = [json.loads(line) for line in (desk.folder / "texts.jsonl").read_text().splitlines()]
        labelled = (json.dumps(line | {"label": number % 3}) for number, line in enumerate(lines))
        (desk.folder / "held-out.jsonl").write_text("\n".join(labelled) + "\n")
        (desk.folder / "participate.yaml").write_text(
            yaml.safe_dump(
                {
                    "project": made.project,
                    "model": "tuned",
                    "held_out": {"texts": "held-out.jsonl"},
                    "measured": {"texts": "texts.jsonl"},
                    "allow": ["evaluate"],
                }
            )
        )
    with made.coordinator.client() as client:
        client.submit(made.project, gramfuse.Recipe(merge_method="regmean"), job="first")
        client.wait(made.project, "first")
    return made


def answer_all(made: Collaboration, *, skip=()) -> None:
    for desk in made.desks:
        if desk not in skip:
            with desk.client() as client:
                handled = participate(
                    client, read_participation(desk.folder / "participate.yaml"), confirm=lambda _: True
                )
            assert [one.outcome for one in handled] == ["answered"]


def test_everybody_scores_the_merged_model_and_all_see_the_table(merged):
    acme, globex, _ = merged.desks
    acme.gramfuse("request", "create", merged.project, "evaluate", "first", "--id", "eval-1")
    shown = globex.run("participate", "participate.yaml", timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert "your own model on 80 of your held-out texts: " in shown.stderr  # told, though it was allowed beforehand
    assert "eval-1" in shown.stdout
    assert acme.json("request", "show", merged.project, "eval-1")["state"] == "open"
    answer_all(merged, skip=[globex])
    done = acme.json("request", "wait", merged.project, "eval-1")
    assert done["state"] == "complete"
    for place in done["asked"]:
        assert [score["model"] for score in place["scores"]] == ["first", None]
        assert all(0 <= score["metrics"]["f1"] <= 1 and score["examples"] == 80 for score in place["scores"])
    table = acme.gramfuse("request", "show", merged.project, "eval-1")
    assert "own model" in table
    assert "mean" in table
    assert "first is released: eval-1 passed" in table
    # the same command again has nothing left to do
    assert "no request waits" in globex.run("participate", "participate.yaml").stderr


def test_nothing_leaves_where_nobody_can_be_asked_and_the_kind_is_not_allowed(merged):
    acme, globex, _ = merged.desks
    acme.gramfuse("request", "create", merged.project, "gram", "first", "--id", "gram-0")
    refused = globex.run("participate", "participate.yaml")
    assert refused.returncode == 3
    assert "Gram matrices of" in refused.stderr
    assert "no terminal to ask at" in refused.stderr
    places = globex.json("request", "show", merged.project, "gram-0")["asked"]
    assert {place["state"] for place in places} == {"awaited"}
    # what was computed is kept, and sent as it is once somebody says yes
    kept = globex.folder / "answers" / merged.project / "gram-0" / "answer.json"
    before = kept.read_bytes()
    assert kept.parent.stat().st_mode & 0o077 == 0
    assert globex.run("participate", "participate.yaml", "--yes").returncode == 0
    with globex.client() as client:
        given = globex.get(f"/v1/projects/{merged.project}/requests/gram-0/answers/{client.organization}")
    assert given["answer"] == json.loads(before)
    assert not kept.exists()


def test_layers_are_merged_anew_with_what_the_merged_model_makes_of_everybodys_texts(merged):
    with merged.coordinator.client() as client:
        client.ask(merged.project, "gram", "first", layers=LAYERS, request="gram-1")
        answer_all(merged)
        assert client.wait_for_request(merged.project, "gram-1").state == "complete"
        recipe = gramfuse.Recipe(merge_method="regmean", base_model="first", request="gram-1")
        client.submit(merged.project, recipe, job="second")
        client.wait(merged.project, "second")
        with pytest.raises(ModelNotReleasedError, match="nobody was asked to evaluate it"):
            client.pull(merged.project, "second", merged.coordinator.folder / "second")
        client.ask(merged.project, "evaluate", ["first", "second"], request="eval-2")
        answer_all(merged)
        for name in ("first", "second"):
            client.pull(merged.project, name, merged.coordinator.folder / name)
        receipt = client.model(merged.project, "second").receipt.receipt
        assert sorted(answer.organization for answer in receipt.answers) == sorted(d.name for d in merged.desks)
    first, second = (load_file(merged.coordinator.folder / name / "model.safetensors") for name in ("first", "second"))
    assert {name for name in first if not torch.equal(first[name], second[name])} == set(LAYERS)
    # the definition: least squares of the organizations' layers on the inputs that the merged model gives them
    for layer in LAYERS:
        total, products = 0.0, 0.0
        for desk in merged.desks:
            texts = [json.loads(line)["text"] for line in (desk.folder / "texts.jsonl").read_text().splitlines()]
            taps = gramfuse.collect(merged.coordinator.folder / "first", texts).taps
            tap = next(tap for tap in taps if any(read.weight == layer for read in tap.info.layers))
            gram = tap.unpacked().double() / tap.info.rows
            precision = 0.9 * gram + 0.1 * gram.diag().diag()
            total = total + precision
            products = products + load_file(desk.folder / "tuned" / "model.safetensors")[layer].double() @ precision
        expected = torch.linalg.solve(total, products.T).T
        torch.testing.assert_close(second[layer].double(), expected, atol=1e-5, rtol=1e-4)
    card = (merged.coordinator.folder / "second" / "README.md").read_text()
    assert "Merged anew from `first`: 2 linear layers" in card
