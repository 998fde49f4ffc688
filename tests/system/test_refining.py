"""RegMean++ on real processes: participants that look for requests by themselves, and a coordinator's one command."""

import functools
import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

import gramfuse
from gramfuse.answering.configuration import read_participation
from gramfuse.answering.participating import participate
from gramfuse_shared.contract.http_api import Job
from support import collaboration, tiny
from support.collaboration import Collaboration
from support.deployment import Deployment, Desk, kill, wait_until
from support.tiny_models import Recorder

POLICY = gramfuse.Policy(
    heads="shared",
    minimum_rows_per_dimension=1,
    embedding_taps="send",  # so that the result is the published algorithm's in all layers, the first ones too
    requests=("gram",),
)
ALPHA = 0.9
BLOCKS = ("bert.encoder.layer.0.", "bert.encoder.layer.1.")


pytestmark = pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)  # nothing here hangs on the database


@pytest.fixture
def merged(deployment) -> Collaboration:
    """A project with the model `first`, whose participants have a configuration."""
    return merge(deployment, "pp")


def merge(
    deployment: Deployment,
    name: str,
    write_base: Callable[[Path], None] = tiny.write_base,
    policy: gramfuse.Policy = POLICY,
) -> Collaboration:
    names = [f"{organization}-{name}" for organization in ("acme", "globex", "initech")]
    made = collaboration.begin(deployment, names, write_base, policy=policy)
    collaboration.contribute(made)
    for desk in made.desks:
        configuration = {"project": made.project, "model": "tuned", "measured": {"texts": "texts.jsonl"}}
        (desk.folder / "participate.yaml").write_text(yaml.safe_dump(configuration | {"allow": list(policy.requests)}))
    with made.coordinator.client() as client:
        client.submit(made.project, gramfuse.Recipe(merge_method="regmean"), job="first")
        client.wait(made.project, "first")
    return made


def answer_all(made: Collaboration) -> None:
    for desk in made.desks:
        with desk.client() as client:
            participate(client, read_participation(desk.folder / "participate.yaml"), confirm=lambda _: False)


@contextmanager
def watching(*desks: Desk) -> Iterator[list[subprocess.Popen[str]]]:
    """Participants' clients that look for requests every second."""
    started = [desk.start("participate", "participate.yaml", "--watch", "--every", "1") for desk in desks]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                kill(process)
            process.communicate()


def request_of(desk: Desk, made: Collaboration, name: str) -> Any:
    return desk.get(made.path(f"/requests/{name}"))


def answers(desk: Desk, made: Collaboration, name: str) -> int:
    found = request_of(desk, made, name)
    return 0 if found is None else sum(place["state"] == "accepted" for place in found["asked"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    return {name: value.double() for file in files for name, value in file.items()}


def published(made: Collaboration, first: Path) -> dict[str, torch.Tensor]:
    """RegMean++ (arXiv 2508.03121, algorithm 1) in float64, text by text: no padding, no shared sums, an inverse.

    Each block of each organization reads what the merged blocks below make of its texts; the linear weights of the
    block are least squares on the inputs that they have within it, all else in it is the mean.
    """
    result = weights(first)
    own = [weights(desk.folder / "tuned") for desk in made.desks]
    for block in BLOCKS:
        grams = []
        for desk, mine in zip(made.desks, own, strict=True):
            model = BertForSequenceClassification.from_pretrained(first).double().eval()
            model.load_state_dict({name: (mine if name.startswith(block) else result)[name] for name in result})
            tokenizer = PreTrainedTokenizerFast.from_pretrained(first)
            recorder = Recorder(model)
            for line in (desk.folder / "texts.jsonl").read_text().splitlines():
                with torch.no_grad():
                    model(**tokenizer(json.loads(line)["text"], return_tensors="pt"))
            grams.append(recorder)
        for name in [name for name in result if name.startswith(block)]:
            if name in grams[0].inputs:
                precisions = []
                for recorder in grams:
                    gram = recorder.gram(name) / len(torch.cat(recorder.inputs[name]))
                    precisions.append(ALPHA * gram + (1 - ALPHA) * gram.diag().diag())
                products = sum(mine[name] @ precision for mine, precision in zip(own, precisions, strict=True))
                result[name] = products @ torch.linalg.inv(sum(precisions))
            else:
                result[name] = sum(mine[name] for mine in own) / len(own)
    return result


def test_one_command_and_participants_that_watch_make_the_published_algorithms_model(merged):
    """And it is interrupted, and so are they: the same commands again go on, and nobody answers twice."""
    acme, globex, initech = merged.desks
    # Ctrl-C while nobody answers yet
    coordinator = acme.start("request", "refine", merged.project, "first", "--id", "pp")
    wait_until(lambda: request_of(acme, merged, "pp-1"), seconds=60, what="the first request")
    time.sleep(1)  # until it knows what it waits for
    coordinator.send_signal(signal.SIGINT)
    _, told = coordinator.communicate(timeout=30)
    assert coordinator.returncode == 130, told
    assert "request pp-1 stays open" in told
    assert "running the same command again resumes" in told
    assert request_of(acme, merged, "pp-1")["state"] == "open"

    with watching(acme, globex) as (_, victim):
        wait_until(lambda: answers(acme, merged, "pp-1") == 2, seconds=120, what="two answers")
        kill(victim)
        coordinator = acme.start("request", "refine", merged.project, "first", "--id", "pp", "--format", "json")
        with watching(globex, initech) as (again, other):
            _, told = coordinator.communicate(timeout=240)
            assert coordinator.returncode == 0, told
            for process in (again, other):
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=60)
                assert process.returncode == 0, told
                assert "stopping; Ctrl-C again stops at once" in told

    with acme.client() as client:
        assert [(request.id, request.block, request.state) for request in client.requests(merged.project)] == [
            ("pp-2", "own", "complete"),
            ("pp-1", "own", "complete"),
        ]
        client.pull(merged.project, "first", acme.folder / "first")
        client.pull(merged.project, "pp", acme.folder / "pp")
        assert client.model(merged.project, "pp-1").deleted_at is not None
    found, expected = weights(acme.folder / "pp"), published(merged, acme.folder / "first")
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 2e-6, name
    # of what was pulled for answers that were accepted the last is left, for what the next has in common with it
    for desk in merged.desks:
        kept = (desk.folder / "answers" / merged.project / "models").iterdir()
        assert [path.name for path in kept] == ["pp-1"], desk.name


def test_in_one_program_the_participants_answer_while_the_loop_waits(deployment):
    """Merged weights in the measured blocks; models are kept, and of their files some are the same."""
    made = merge(deployment, "in-one", functools.partial(tiny.write_base, hidden=128, layers=4))  # several megabytes
    shares: list[float] = []
    with made.coordinator.client() as client:

        def refine() -> Job:
            return client.refine(
                made.project,
                "first",
                result="in-one",
                block="merged",
                weighting="output_gradient",
                keep=True,
                on_request=lambda _: answer_all(made),
                on_progress=lambda progress: shares.append(progress.share),
            )

        job = refine()
        assert (job.id, job.recipe.request) == ("in-one", "in-one-4")
        assert shares == sorted(shares)
        assert shares[-1] == 1
        requests = client.requests(made.project)
        assert [(request.id, request.block) for request in requests] == [
            (f"in-one-{n}", "merged") for n in (4, 3, 2, 1)
        ]
        assert {request.weighting for request in requests} == {"output_gradient"}
        models = {model.id: model for model in client.models(made.project) if model.deleted_at is None}
        names = ["in-one-1", "in-one-2", "in-one-3", "in-one"]
        assert set(models) == {"first", *names}
        files = [{file.sha256 for file in models[name].files if "safetensors" in file.name} for name in names]
        assert any(len(before & after) > 1 for before, after in itertools.pairwise(files)), files  # one is the index
        # the same call again only looks
        assert refine() == job
        assert client.requests(made.project) == requests


GROUPS = ("attention.self.", "attention.output.dense.", "intermediate.dense.", "output.dense.")


def refit_by_definition(made: Collaboration, first: Path, ridge: float) -> dict[str, torch.Tensor]:
    """Group by group in float64, text by text, by least squares on everybody's rows together.

    Each row is (x, 1), x what the layer of the model so far reads, and what its output lacks to that of the
    organization's own model; below them for each feature one row that lacks nothing, the root of λ times its energy.
    """
    result = weights(first)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(first)
    for group in (f"{block}{group}" for block in BLOCKS for group in GROUPS):
        layers = [name.removesuffix(".weight") for name in result if name.startswith(group) and name.endswith("weight")]
        pooled: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {layer: [] for layer in layers}
        for desk in made.desks:
            model, own = (BertForSequenceClassification.from_pretrained(first).double().eval() for _ in range(2))
            model.load_state_dict(result)
            own.load_state_dict(weights(desk.folder / "tuned"))
            rows: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {layer: [] for layer in layers}
            seen: dict[str, torch.Tensor] = {}
            for layer in layers:
                own.get_submodule(layer).register_forward_hook(
                    lambda _, __, output, layer=layer, seen=seen: seen.update({layer: output[0]})
                )
                model.get_submodule(layer).register_forward_hook(
                    lambda _, read, output, layer=layer, rows=rows, seen=seen: rows[layer].append(
                        (torch.cat([read[0][0], read[0].new_ones(len(read[0][0]), 1)], 1), seen[layer] - output[0])
                    )
                )
            for line in (desk.folder / "texts.jsonl").read_text().splitlines():
                inputs = tokenizer(json.loads(line)["text"], return_tensors="pt")
                with torch.no_grad():
                    own(**inputs)
                    model(**inputs)
            for layer, found in rows.items():
                x, lacking = (torch.cat(parts) for parts in zip(*found, strict=True))
                pooled[layer].append((x / len(x) ** 0.5, lacking / len(x) ** 0.5))
        for layer, found in pooled.items():
            x, lacking = (torch.cat(parts) for parts in zip(*found, strict=True))
            below = torch.diag((ridge * x.square().sum(dim=0)).sqrt())
            nothing = lacking.new_zeros(len(below), lacking.shape[1])
            change = torch.linalg.lstsq(torch.cat([x, below]), torch.cat([lacking, nothing])).solution
            result[f"{layer}.weight"] = result[f"{layer}.weight"] + change[:-1].T
            result[f"{layer}.bias"] = result[f"{layer}.bias"] + change[-1]
    return result


def test_a_refit_goes_group_by_group_and_makes_the_model_that_its_definition_makes(deployment):
    policy = POLICY.model_copy(update={"requests": ("refit",), "methods": ("regmean", "refit")})
    made = merge(deployment, "refit", policy=policy)
    with made.coordinator.client() as client:

        def refine() -> Job:
            return client.refine(
                made.project, "first", method="refit", ridge=0.1, on_request=lambda _: answer_all(made)
            )

        job = refine()
        assert (job.id, job.recipe.merge_method, job.recipe.request) == ("first-refined", "refit", "first-refined-8")
        assert len(client.requests(made.project)) == 8
        for name in ("first", "first-refined"):
            client.pull(made.project, name, made.coordinator.folder / name)
        assert refine() == job  # only looks
        assert len(client.requests(made.project)) == 8
    before, after = (weights(made.coordinator.folder / name) for name in ("first", "first-refined"))
    expected = refit_by_definition(made, made.coordinator.folder / "first", 0.1)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-4)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(BLOCKS) and "LayerNorm" not in name}
