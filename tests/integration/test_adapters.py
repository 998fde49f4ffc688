"""Adapters take part as any other model: measured, pushed, merged by the service and by `gramfuse merge`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gramfuse.local_merging import merge
from gramfuse.measuring.collection import Collector
from gramfuse.transfer.pushing import Prepared
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import ArchitectureMismatchError, FileUnreadableError, RecipeInvalidError
from support.adapters import TARGETS, load_base, save_adapter, save_base
from support.client_world import Site
from support.tiny_models import example_batch
from support.worker_world import InProcessWorker

MEMBERS = ("acme", "globex", "initech")
PROJECT = "acme.tweets"
SHARED = Policy(heads="shared", minimum_rows_per_dimension=0)


def measure(model: Path, kind: str, target: Path, *, seed: int) -> None:
    loaded = load_base(model).eval()
    with torch.no_grad(), Collector(loaded) as statistics:
        for batch in range(4):
            loaded(**example_batch(kind, seed=10 * seed + batch))
    statistics.save(target)


def local_recipe(method: str, base: Path, models: list[Path]) -> Recipe:
    return Recipe.model_validate(
        {"merge_method": method, "base_model": str(base), "models": [{"model": str(model)} for model in models]}
    )


class InspectedSite(Site):
    """A machine of an organization, whose waiting lets the real inspection look at what was sealed."""

    worker: InProcessWorker

    def _let_the_worker_work(self, _seconds: float) -> None:
        for project in self.world.coordinator(self.organization).get("/v1/projects").json()["items"]:
            if project["state"] == "sealed":
                self.world.accept_base(project["id"])
        self.worker.inspect_all()


@pytest.fixture
def worker(world, settings) -> InProcessWorker:
    return InProcessWorker(world, settings)


@pytest.fixture
def base(tmp_path) -> Path:
    return save_base(tmp_path / "base", "bert")


@pytest.fixture
def sites(world, worker, base, tmp_path) -> dict[str, Site]:
    """A ready project of three organizations that accepted its policy and pulled its base."""
    made = {}
    for name in MEMBERS:
        made[name] = InspectedSite(world, name, "coordinator" if name == "acme" else "participant", tmp_path)
        made[name].worker = worker
    with made["acme"].client() as client:
        client.create_project("tweets", base=base, policy=SHARED)
        for name in MEMBERS[1:]:
            client.invite(PROJECT, name)
    for name, site in made.items():
        with site.client() as client:
            client.accept_policy(PROJECT, client.policy(PROJECT).digest)
            client.pull_base(PROJECT, tmp_path / f"base of {name}")
    return made


def adapters(tmp_path: Path, base: Path, kind: str, targets: dict[str, list[str]]) -> dict[str, Path]:
    """Adapters with their statistics, and beside them, as `merged-…`, the whole models that PEFT makes."""
    made = {}
    for seed, name in enumerate(MEMBERS):
        options = {"modules_to_save": ["classifier"]} if kind == "bert" else {}
        merged = tmp_path / f"merged-{name}"
        made[name] = save_adapter(
            tmp_path / name, base, seed=seed, merged=merged, target_modules=targets[name], **options
        )
        measure(merged, kind, made[name] / "statistics.safetensors", seed=seed)
        (merged / "statistics.safetensors").write_bytes((made[name] / "statistics.safetensors").read_bytes())
    return made


@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2", "llama"])
def test_merging_adapters_is_merging_the_whole_models_that_peft_makes_of_them(kind, tmp_path):
    base = save_base(tmp_path / "base", kind)
    made = adapters(tmp_path, base, kind, dict.fromkeys(MEMBERS, TARGETS[kind]))
    merge(local_recipe("regmean", base, list(made.values())), tmp_path / "of-adapters")
    merge(local_recipe("regmean", base, [tmp_path / f"merged-{name}" for name in made]), tmp_path / "of-models")
    found, expected = (tmp_path / name / "model.safetensors" for name in ("of-adapters", "of-models"))
    assert found.read_bytes() == expected.read_bytes()
    assert load_base(tmp_path / "of-adapters")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_other_methods_merge_adapters_as_the_whole_models_up_to_the_order_of_addition(method, base, tmp_path):
    made = adapters(tmp_path, base, "bert", dict.fromkeys(MEMBERS, TARGETS["bert"]))
    merge(local_recipe(method, base, list(made.values())), tmp_path / "of-adapters")
    merge(local_recipe(method, base, [tmp_path / f"merged-{name}" for name in made]), tmp_path / "of-models")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("of-adapters", "of-models"))
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=1e-6, atol=1e-6)


def test_one_adapter_alone_merges_into_its_whole_model(base, tmp_path):
    adapters(tmp_path, base, "bert", {name: ["query"] for name in MEMBERS})
    merge(local_recipe("linear", base, [tmp_path / "acme"]), tmp_path / "whole")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "merged-acme"))
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_a_recipe_of_adapters_needs_its_base(base, tmp_path):
    save_adapter(tmp_path / "adapter", base, target_modules=["query"])
    recipe = Recipe.model_validate({"merge_method": "linear", "models": [{"model": str(tmp_path / "adapter")}]})
    with pytest.raises(RecipeInvalidError, match="add base_model"):
        merge(recipe, tmp_path / "out")


def test_three_adapters_go_through_the_service_and_come_out_as_the_whole_models_would(
    sites, worker, base, tmp_path, monkeypatch
):
    made = adapters(tmp_path, base, "bert", dict.fromkeys(MEMBERS, TARGETS["bert"]))
    touched = len(load_file(made["acme"] / "adapter_model.safetensors"))
    for name, site in sites.items():
        plans = []
        with site.client() as client:
            sent = client.push(
                PROJECT,
                model=made[name],
                statistics=made[name] / "statistics.safetensors",
                confirm=lambda plan, plans=plans: plans.append(plan) or True,
            )
        assert sent.state == "accepted"
        manifest = sent.manifest
        assert manifest is not None
        assert manifest.weights.left_out == "base"
        assert 0 < len(manifest.weights.tensors) < touched
        assert "of an adapter" in str(plans[0]).lower()
        document = manifest.canonical().decode()
        assert str(tmp_path) not in document
        assert "lora" not in document
    with sites["acme"].client() as client:
        client.submit(PROJECT, Recipe(merge_method="regmean"), job="regmean-1")
    worker.run(PROJECT, "regmean-1")
    with sites["globex"].client() as client:
        pulled = client.pull(PROJECT, "regmean-1", tmp_path / "pulled")
    merge(local_recipe("regmean", base, [tmp_path / f"merged-{name}" for name in made]), tmp_path / "local")
    found, expected = (load_file(path / "model.safetensors") for path in (pulled, tmp_path / "local"))
    # the service withholds the taps that embeddings feed, so their layers are averaged there
    averaged = [name for name in expected if ".layer.0.attention.self." in name]
    for name, weights in expected.items():
        if name not in averaged:
            torch.testing.assert_close(found[name], weights, rtol=1e-5, atol=1e-5)
    assert averaged


def test_a_layer_that_one_adapter_leaves_alone_counts_there_with_the_bases_value(sites, worker, base, tmp_path):
    targets = {"acme": ["query", "key"], "globex": ["query", "key"], "initech": ["query"]}
    with sites["acme"].client() as client:
        policy = SHARED.model_copy(update={"minimum_cohort": 2})
        client.set_policy(PROJECT, policy)
    made = adapters(tmp_path, base, "bert", targets)
    for name, site in sites.items():
        with site.client() as client:
            client.accept_policy(PROJECT, client.policy(PROJECT).digest)
            client.push(PROJECT, model=made[name], confirm=lambda _: True)
    with sites["acme"].client() as client:
        client.submit(PROJECT, Recipe(merge_method="linear"), job="linear-1")
    worker.run(PROJECT, "linear-1")
    with sites["globex"].client() as client:
        pulled = client.pull(PROJECT, "linear-1", tmp_path / "pulled")
    found = load_file(pulled / "model.safetensors")
    models = [load_file(tmp_path / f"merged-{name}" / "model.safetensors") for name in made]
    for name, weights in found.items():
        torch.testing.assert_close(weights, sum(model[name] for model in models) / 3, rtol=1e-6, atol=1e-6)


def test_an_adapter_is_pushed_only_over_the_projects_own_base(sites, tmp_path, base):
    folder = save_adapter(tmp_path / "adapter", base, target_modules=["query"])
    other = save_base(tmp_path / "other", "bert", seed=5)
    site = sites["globex"]
    site.wire.requests.clear()
    with site.client() as client, pytest.raises(ArchitectureMismatchError, match="not the project's base model"):
        client.push(PROJECT, model=folder, base=other, confirm=lambda _: True)
    assert site.wire.writes() == []


def test_an_adapter_without_a_known_base_says_how_to_name_it(sites, tmp_path, base):
    folder = save_adapter(tmp_path / "adapter", base, target_modules=["query"])
    pulled = tmp_path / "base of globex"
    pulled.rename(tmp_path / "moved")
    with sites["globex"].client() as client:
        with pytest.raises(FileUnreadableError, match="--base"):
            client.plan(PROJECT, model=folder)
        plan = client.plan(PROJECT, model=folder, base=tmp_path / "moved")
    assert {weight.info.name.rpartition(".")[0].rpartition(".")[2] for weight in plan.leaving_weights} == {"query"}


def test_adapted_embeddings_and_private_heads_follow_the_policy(sites, tmp_path, base):
    with sites["acme"].client() as client:
        client.set_policy(PROJECT, Policy())
    folder = save_adapter(
        tmp_path / "adapter", base, target_modules=["query", "word_embeddings"], modules_to_save=["classifier"]
    )
    with sites["globex"].client() as client:
        client.accept_policy(PROJECT, client.policy(PROJECT).digest)
        plan = client.plan(PROJECT, model=folder)
    assert all(".query." in weight.info.name for weight in plan.leaving_weights)
    staying = {name for group in plan.staying() for name in group.names}
    assert staying == {"bert.embeddings.word_embeddings.weight", "classifier.weight", "classifier.bias"}
    assert any("what they learned is lost" in warning for warning in plan.warnings)
    assert plan.to_json()["left_out"] == "base"


def test_what_a_configuration_says_of_places_does_not_leave(sites, tmp_path, base, monkeypatch):
    folder = save_adapter(tmp_path / "adapter", base, target_modules=["query"])
    config = json.loads((folder / "adapter_config.json").read_text())
    secret = "/home/someone/secret-project"
    config |= {"base_model_name_or_path": secret, "revision": secret, "auto_mapping": {"parent_library": secret}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    packages = []
    package = Prepared.package
    monkeypatch.setattr(Prepared, "package", lambda *given: packages.append(package(*given)) or packages[-1])
    with sites["globex"].client() as client:
        client.push(PROJECT, model=folder, confirm=lambda _: True)
    sent = packages[0].manifest.canonical() + b"".join(b"".join(file.chunks()) for file in packages[0].files)
    assert secret.encode() not in sent
