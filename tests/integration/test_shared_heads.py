"""One head, begun alike by all, of which each organization trained some labels: the whole way, with real models."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification

import gramfuse
from support import tiny
from support.client_world import Site
from support.worker_world import InProcessWorker

PROJECT = "acme.tweets"
POLICY = gramfuse.Policy(heads="shared", minimum_rows_per_dimension=1, minimum_cohort=2)
TRAINED = {"acme": [0, 1], "globex": [1, 2], "initech": [0, 1, 2]}
HEAD = ("classifier.weight", "classifier.bias")


def write_tuned(base: Path, folder: Path, trained: list[int], seed: int) -> None:
    """Fine-tune the body, and of the shared head the rows of one's own labels."""
    model = BertForSequenceClassification.from_pretrained(base)
    begun = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in HEAD}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".embeddings." not in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            if name in HEAD:
                absent = [row for row in range(3) if row not in trained]
                parameter[absent] = begun[name][absent]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def test_each_row_of_a_shared_head_is_merged_of_those_that_trained_its_label(make_world, settings, tmp_path):
    world = make_world(part_bytes=2**20)
    sites = {name: Site(world, name, "coordinator", tmp_path) for name in TRAINED}
    worker = InProcessWorker(world, settings)
    base = tmp_path / "base"
    tiny.write_base(base)
    (config,) = [json.loads((base / "config.json").read_text())]
    (base / "config.json").write_text(json.dumps(config | {"id2label": {str(i): f"topic {i}" for i in range(3)}}))
    with sites["acme"].client() as acme:
        created = acme.create_project("tweets", base=base, policy=POLICY)
        for name in TRAINED:
            acme.invite(PROJECT, name)
    for seed, (name, site) in enumerate(sites.items(), start=1):
        tuned = tmp_path / name
        write_tuned(base, tuned, TRAINED[name], seed)
        tiny.write_texts(tmp_path / "texts.jsonl", seed=seed)
        texts = [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
        gramfuse.collect(tuned, texts).save(tuned / "statistics.safetensors")
        options = {"model": tuned, "statistics": tuned / "statistics.safetensors", "base": base}
        with site.client() as client:
            client.accept_policy(PROJECT, created.policy.digest)
            plan = client.plan(PROJECT, **options)
            assert any("have the base's values still" in w for w in plan.warnings) == (len(TRAINED[name]) < 3)
            assert not client.plan(PROJECT, **options, labels=TRAINED[name]).warnings[1:]
            client.push(PROJECT, **options, labels=TRAINED[name], confirm=lambda _: True)
    with sites["acme"].client() as acme:
        acme.submit(PROJECT, gramfuse.Recipe(merge_method="regmean"), job="shared")
    worker.run(PROJECT, "shared")
    with sites["globex"].client() as client:
        merged = load_file(client.pull(PROJECT, "shared", tmp_path / "merged") / "model.safetensors")
    for row in range(3):
        sharing = [name for name in TRAINED if row in TRAINED[name]]
        recipe = {"merge_method": "regmean", "base_model": "base", "models": [{"model": name} for name in sharing]}
        alone = gramfuse.merge(gramfuse.Recipe.model_validate(recipe), tmp_path / f"row-{row}", folder=tmp_path)
        expected = load_file(alone.path / "model.safetensors")
        for name in HEAD:
            assert torch.allclose(merged[name][row], expected[name][row], atol=1e-5)
