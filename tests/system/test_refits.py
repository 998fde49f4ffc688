"""Refits on real processes: a merged model gets a head fit to everybody's logits, then biases by everybody's scores."""

import json
import random

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import gramfuse
from gramfuse.answering.configuration import read_participation
from gramfuse.answering.participating import participate
from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms, bin_edge
from gramfuse_shared.fusion.calibration import choose_shifts
from support import collaboration
from support.collaboration import Collaboration

LABELS = 3
POLICY = gramfuse.Policy(
    heads="shared",
    methods=("linear", "head", "calibration"),
    requests=("head", "calibration"),
    minimum_cohort=2,
    minimum_rows_per_dimension=1,
    minimum_evaluation_examples=10,
)


@pytest.fixture
def merged(deployment, request) -> Collaboration:
    """Two organizations and the mean of their models, `first`; both have texts and a configuration."""
    suffix = f"{random.Random(request.node.name).randrange(10**6)}"
    made = collaboration.begin(deployment, [f"acme{suffix}", f"globex{suffix}"], policy=POLICY)
    collaboration.contribute(made, statistics=False)
    for desk in made.desks:
        lines = [json.loads(line) for line in (desk.folder / "texts.jsonl").read_text().splitlines()]
        labelled = (json.dumps(line | {"label": number % LABELS}) for number, line in enumerate(lines))
        (desk.folder / "held-out.jsonl").write_text("\n".join(labelled) + "\n")
        configuration = {
            "project": made.project,
            "model": "tuned",
            "held_out": {"texts": "held-out.jsonl"},
            "measured": {"texts": "texts.jsonl"},
            "allow": ["calibration"],
        }
        (desk.folder / "participate.yaml").write_text(yaml.safe_dump(configuration))
    with made.coordinator.client() as client:
        client.submit(made.project, gramfuse.Recipe(merge_method="linear"), job="first")
        client.wait(made.project, "first")
    return made


def logits_of(folder, texts, *, layer=None):
    """Logits [texts, labels] in float64, each text alone, and what a layer reads."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    read, found = [], []
    if layer is not None:
        model.get_submodule(layer).register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    with torch.no_grad():
        for text in texts:
            encoded = tokenizer(text, return_tensors="pt")
            encoded.pop("token_type_ids", None)
            found.append(model(**encoded).logits)
    return torch.cat(found).double(), torch.cat(read).double() if read else None


def texts_of(desk):
    return [json.loads(line)["text"] for line in (desk.folder / "texts.jsonl").read_text().splitlines()]


def pull(client, made, name):
    client.pull(made.project, name, made.coordinator.folder / name)
    return load_file(made.coordinator.folder / name / "model.safetensors")


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_merged_models_head_and_then_its_biases_are_refit_with_what_everybody_answers(merged):
    acme, globex = merged.desks
    acme.gramfuse("request", "create", merged.project, "head", "first", "--id", "head-1")
    # not allowed beforehand, so nobody answers where nobody can be asked; what was computed is kept
    refused = globex.run("participate", "participate.yaml", timeout=120)
    assert refused.returncode == 3, refused.stderr
    assert "tell your own head" in refused.stderr
    kept = globex.folder / "answers" / merged.project / "head-1" / "answer.json"
    before = json.loads(kept.read_bytes())
    assert globex.run("participate", "participate.yaml", "--yes", timeout=120).returncode == 0
    with globex.client() as client:
        given = globex.get(f"/v1/projects/{merged.project}/requests/head-1/answers/{client.organization}")
    assert given["answer"] == before
    with acme.client() as client:
        answered = participate(client, read_participation(acme.folder / "participate.yaml"), confirm=lambda _: True)
        assert [one.outcome for one in answered] == ["answered"]
        assert client.wait_for_request(merged.project, "head-1").state == "complete"
        acme.gramfuse(
            *("job", "submit", merged.project, "--method", "head", "--anew", "first", "--request", "head-1"),
            *("--id", "second", "--wait"),
        )
        first, second = pull(client, merged, "first"), pull(client, merged, "second")
        assert changed(first, second) == {"classifier.weight", "classifier.bias"}
        _require_ridge(merged, second)
        # the biases of that model
        client.ask(merged.project, "calibration", "second", request="calibration-1")
        for desk in merged.desks:
            shown = desk.run("participate", "participate.yaml", timeout=120)
            assert shown.returncode == 0, shown.stderr
            assert "how often each label occurs in your texts" in shown.stderr
        assert client.wait_for_request(merged.project, "calibration-1").state == "complete"
        recipe = gramfuse.Recipe(merge_method="calibration", base_model="second", request="calibration-1")
        client.submit(merged.project, recipe, job="third")
        client.wait(merged.project, "third")
        third = pull(client, merged, "third")
        assert changed(second, third) == {"classifier.bias"}
        expected = second["classifier.bias"].double() + choose_shifts(_counted(merged))
        torch.testing.assert_close(third["classifier.bias"].double(), expected, atol=1e-6, rtol=0)


def _require_ridge(made, model):
    """The definition: ridge regression on the features of all organizations, in float64."""
    rows, targets = [], []
    for desk in made.desks:
        texts = texts_of(desk)
        _, features = logits_of(made.coordinator.folder / "first", texts, layer="classifier")
        logits, _ = logits_of(desk.folder / "tuned", texts)
        root = len(texts) ** -0.5  # each organization counts alike
        rows.append(root * torch.cat([features, torch.ones(len(features), 1)], dim=1))
        targets.append(root * logits)
    z, t = torch.cat(rows), torch.cat(targets)
    width = z.shape[1] - 1
    gram = z.T @ z
    gram[:width, :width] += 0.01 * gram.diagonal()[:width].mean() * torch.eye(width)
    solution = torch.linalg.solve(gram, z.T @ t)
    torch.testing.assert_close(model["classifier.weight"].double(), solution[:width].T, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(model["classifier.bias"].double(), solution[width], atol=2e-4, rtol=1e-3)


def _counted(made):
    """The definition: margins of every text, counted by bin, one by one."""
    counts = [[[0] * BINS for _ in range(2)] for _ in range(LABELS)]
    for desk in made.desks:
        logits, _ = logits_of(made.coordinator.folder / "second", texts_of(desk))
        for number, scores in enumerate(logits.tolist()):
            for label, score in enumerate(scores):
                margin = score - max(other for place, other in enumerate(scores) if place != label)
                inside = sum(margin > bin_edge(edge) for edge in range(1, BINS))
                counts[label][int(number % LABELS != label)][inside] += 1
    classes = [{"label": c, "labelled": found[0], "others": found[1]} for c, found in enumerate(counts)]
    return CalibrationHistograms.model_validate({"score": "margin", "labels": LABELS, "classes": classes})
