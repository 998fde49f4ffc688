"""Three organizations with three tasks share a trunk and keep their heads: each gets a ready model of its own task."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

import gramfuse
from support import tiny
from support.client_world import Site
from support.worker_world import InProcessWorker

PROJECT = "acme.tweets"
POLICY = gramfuse.Policy(
    head_parameters=("classifier.*", "bert.pooler.*"), minimum_rows_per_dimension=1, methods=("regmean",)
)
TASKS: dict[str, tuple[type[PreTrainedModel], dict[str, Any]]] = {
    "acme": (BertForSequenceClassification, {"num_labels": 5, "id2label": {i: f"topic {i}" for i in range(5)}}),
    "globex": (BertForTokenClassification, {"num_labels": 7}),
    "initech": (BertForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}),
}
TEXTS = ["word1 word2 word3", "word9 word4 word4 word30"]


def write_own(base: Path, folder: Path, organization: str, seed: int) -> None:
    """Fine-tune the base's trunk under a head of one's own, begun by chance."""
    task, options = TASKS[organization]
    torch.manual_seed(seed)
    model = task.from_pretrained(base, ignore_mismatched_sizes=True, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".embeddings." not in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)


@torch.no_grad()
def outputs_of(model: PreTrainedModel, base: Path) -> torch.Tensor:
    batch = AutoTokenizer.from_pretrained(base)(TEXTS, padding=True, return_tensors="pt")
    return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def trunk_under_own_head(merged: Path, tuned: Path, task: type[PreTrainedModel]) -> PreTrainedModel:
    """The definition: one's own model, whose encoder and embeddings are replaced by the merged model's."""
    model = task.from_pretrained(tuned)
    trunk = BertModel.from_pretrained(merged)
    model.bert.embeddings.load_state_dict(trunk.embeddings.state_dict())
    model.bert.encoder.load_state_dict(trunk.encoder.state_dict())
    return model


@pytest.mark.filterwarnings("ignore")  # transformers tells that it begins a head anew, which is what this is about
def test_organizations_of_different_tasks_merge_trunks_and_get_their_own_heads_back(make_world, settings, tmp_path):
    world = make_world(part_bytes=2**20)
    sites = {name: Site(world, name, "coordinator", tmp_path) for name in TASKS}
    worker = InProcessWorker(world, settings)
    base = tmp_path / "base"
    tiny.write_base(base)
    with sites["acme"].client() as acme:
        created = acme.create_project("tweets", base=base, policy=POLICY)
        for name in TASKS:
            acme.invite(PROJECT, name)
    tiny.write_texts(tmp_path / "texts.jsonl")
    for seed, (name, site) in enumerate(sites.items(), start=1):
        tuned = tmp_path / name / "tuned"
        write_own(base, tuned, name, seed)
        AutoTokenizer.from_pretrained(base).save_pretrained(tuned)
        texts = [line.split('"')[3] for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
        gramfuse.collect(tuned, texts).save(tmp_path / name / "statistics.safetensors")
        with site.client() as client:
            client.accept_policy(PROJECT, created.policy.digest)
            sent = client.push(
                PROJECT, model=tuned, statistics=tmp_path / name / "statistics.safetensors", confirm=lambda _: True
            )
        assert sent.manifest is not None
        assert not [t.name for t in sent.manifest.weights.tensors if t.name.startswith(("classifier", "bert.pooler"))]
    with sites["acme"].client() as acme:
        acme.submit(PROJECT, gramfuse.Recipe(merge_method="regmean"), job="trunk")
    worker.run(PROJECT, "trunk")
    for name, site in sites.items():
        task, options = TASKS[name]
        tuned, merged, mine = (tmp_path / name / folder for folder in ("tuned", "merged", "mine"))
        with site.client() as client:
            client.pull(PROJECT, "trunk", merged)
            policy = client.policy(PROJECT).policy
        gramfuse.attach_head(merged, tuned, mine, policy=policy, home=site.home)
        personal, notes = task.from_pretrained(mine, output_loading_info=True)
        assert not any(notes.values()), notes
        assert personal.config.num_labels == options["num_labels"]
        assert personal.config.problem_type == options.get("problem_type")
        expected = trunk_under_own_head(merged, tuned, task)
        assert torch.equal(outputs_of(personal, base), outputs_of(expected, base))
        assert not torch.equal(outputs_of(personal, base), outputs_of(task.from_pretrained(tuned), base))
        assert gramfuse.verify(merged, home=site.home).receipt.model == "trunk"
