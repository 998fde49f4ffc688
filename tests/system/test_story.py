"""The whole story by the commands that people type, on real processes: three organizations, two merges, one model."""

import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from gramfuse_shared.contract.policy import Policy
from support import tiny
from support.collaboration import measure, tune

ORGANIZATIONS = ("acme", "globex", "initech")
PROJECT = "acme.tweets"
POLICY = "heads: shared\nminimum_rows_per_dimension: 1\n"


def _weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _sign_in(deployment, name, *, role):
    deployment.operator("org", "create", name)
    token = deployment.operator("token", "create", "--org", name, "--role", role).strip()
    desk = deployment.new_desk(name, url=deployment.url)
    desk.gramfuse("login", deployment.url, "--token", token)
    return desk


def test_three_organizations_merge_and_each_gets_a_model_that_loads(deployment):
    desks = [
        _sign_in(deployment, name, role="participant" if n else "coordinator") for n, name in enumerate(ORGANIZATIONS)
    ]
    acme, globex, _ = desks
    tiny.write_base(acme.folder / "base")
    (acme.folder / "policy.yaml").write_text(POLICY)
    project = acme.json("project", "create", "tweets", "--base", "base", "--policy", "policy.yaml")
    assert (project["id"], project["state"]) == (PROJECT, "ready")
    for desk in desks[1:]:
        acme.gramfuse("project", "invite", PROJECT, desk.name)
    for seed, desk in enumerate(desks, start=1):
        desk.gramfuse("project", "join", PROJECT, "--accept-policy", project["policy"]["digest"])
        if desk is not acme:
            desk.gramfuse("project", "base", "pull", PROJECT, "base")
        tune(desk, seed=seed)
        if desk is acme:
            desk.gramfuse("stats", "collect", "--model", "tuned", "--texts", "texts.jsonl")
        else:
            measure(desk)  # the same in this process, where torch is loaded already
        files = ["--model", "tuned", "--statistics", "statistics.safetensors"]
        pushed = desk.json("contribution", "push", PROJECT, *files, "--yes")
        assert pushed["state"] == "accepted"

    for method in ("linear", "regmean"):
        acme.gramfuse("job", "submit", PROJECT, "--method", method, "--id", method)
        job = acme.json("job", "wait", PROJECT, method)
        assert (job["state"], job["progress"]) == ("succeeded", 1.0)
        assert sorted(member["organization"] for member in job["cohort"]) == sorted(ORGANIZATIONS)

        # a participant, not only the coordinator, gets the model, and it loads without a missing or spare key
        globex.gramfuse("model", "pull", PROJECT, method, method)
        assert len(globex.json("model", "verify", method)["receipt"]["contributions"]) == 3
        model, report = BertForSequenceClassification.from_pretrained(globex.folder / method, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.isfinite(model(torch.tensor([[2, 5, 6, 3]])).logits).all()

    # the linear merge is its definition: the mean of what was sent, the base where nothing was
    tuned = [_weights(desk.folder / "tuned") for desk in desks]
    base, linear, regmean = (_weights(globex.folder / name) for name in ("base", "linear", "regmean"))
    assert linear.keys() == base.keys()
    for name, value in linear.items():
        is_embedding = Policy().role_of(name, value.shape, len(tiny.SPECIAL) + len(tiny.WORDS)) == "embedding"
        expected = base[name] if is_embedding else torch.stack([weights[name] for weights in tuned]).mean(0)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    # RegMean differs in the linear weights whose statistics were sent, and nowhere else
    moved = {name for name in linear if not torch.allclose(linear[name], regmean[name], atol=1e-6)}
    assert "bert.encoder.layer.1.output.dense.weight" in moved
    assert "bert.encoder.layer.0.attention.self.query.weight" not in moved  # its tap is fed by embeddings
    assert all(name.endswith("weight") and linear[name].ndim == 2 for name in moved)
    assert all(torch.isfinite(tensor).all() for tensor in regmean.values())
