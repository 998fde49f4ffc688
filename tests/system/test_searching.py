"""A search on real processes: cohorts are merged, everybody scores them, and the best one is left."""

import json
import statistics

import pytest
import yaml

import gramfuse
from gramfuse.answering.configuration import read_participation
from gramfuse.answering.participating import participate
from gramfuse_shared.errors import ConfigurationError, PolicyViolationError
from support import collaboration
from support.collaboration import Collaboration

POLICY = gramfuse.Policy(
    heads="shared",
    minimum_rows_per_dimension=1,
    cohorts="open",
    minimum_cohort=2,
    requests=("evaluate",),
    minimum_evaluation_examples=20,
)
pytestmark = pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)  # nothing here hangs on the database


@pytest.fixture
def contributed(deployment, request) -> Collaboration:
    """An open project of three, each with held-out texts and a configuration."""
    test = request.node.name[5:14].strip("_").replace("_", "-")
    made = collaboration.begin(deployment, [f"{name}-{test}" for name in ("acme", "globex", "initech")], policy=POLICY)
    collaboration.contribute(made)
    for number, desk in enumerate(made.desks):
        lines = [json.loads(line) for line in (desk.folder / "texts.jsonl").read_text().splitlines()]
        labelled = (json.dumps(line | {"label": (place + number) % 3}) for place, line in enumerate(lines))
        (desk.folder / "held-out.jsonl").write_text("\n".join(labelled) + "\n")
        configuration = {"project": made.project, "held_out": {"texts": "held-out.jsonl"}, "allow": ["evaluate"]}
        (desk.folder / "participate.yaml").write_text(yaml.safe_dump(configuration))
    return made


def answer_all(made: Collaboration) -> None:
    for desk in made.desks:
        with desk.client() as client:
            participate(client, read_participation(desk.folder / "participate.yaml"), confirm=lambda _: False)


def loss(desk, folder) -> float:
    lines = [json.loads(line) for line in (desk.folder / "held-out.jsonl").read_text().splitlines()]
    texts, labels = [line["text"] for line in lines], [line["label"] for line in lines]
    return gramfuse.evaluate(folder, texts, labels).metrics["loss"]


def test_a_greedy_search_leaves_the_model_that_everybody_finds_best(contributed):
    made, acme = contributed, contributed.coordinator
    strategy = gramfuse.GreedySearch(gramfuse.Recipe(merge_method="regmean"))
    with acme.client() as client:
        with pytest.raises(ZeroDivisionError):  # a crash while everybody is asked
            client.search(made.project, strategy, name="subset", metric="loss", on_request=lambda _: 1 // 0)
        found = client.search(
            made.project, strategy, name="subset", metric="loss", keep=True, on_request=lambda _: answer_all(made)
        )
        tried = {trial.words for trial in found.trials}
        names = [desk.name for desk in made.desks]
        assert {"+".join(sorted(pair)) for pair in zip(names, [*names[1:], names[0]], strict=True)} <= tried
        assert found.best.value == min(trial.value for trial in found.trials)
        # the definition: each organization's own score of the model that it pulls, and their mean
        for trial in found.trials:
            folder = client.pull(made.project, trial.job, acme.folder / trial.job)
            scores = {desk.name: loss(desk, folder) for desk in made.desks}
            assert trial.by_organization == {name: round(value, 4) for name, value in scores.items()}
            assert trial.value == pytest.approx(statistics.fmean(scores.values()), abs=1e-4)
            assert client.job(made.project, trial.job).recipe == trial.recipe
        requests = client.requests(made.project)
        with pytest.raises(ConfigurationError, match="has no perplexity"):
            client.search(made.project, strategy, name="subset", metric="perplexity")

    # the command finds everything judged, asks nobody, and deletes what was beaten
    options = ["--id", "subset", "--method", "regmean", "--metric", "loss"]
    shown = acme.json("search", "greedy", made.project, *options)
    assert shown["best"] == json.loads(json.dumps(found.best.to_json()))
    with acme.client() as client:
        assert client.requests(made.project) == requests
        left = {model.id for model in client.models(made.project) if model.deleted_at is None}
    assert left == {found.best.job}


def test_a_search_is_refused_where_cohorts_are_frozen(contributed):
    with contributed.coordinator.client() as client:
        frozen = POLICY.model_copy(update={"cohorts": "frozen"})
        client.set_policy(contributed.project, frozen)
        strategy = gramfuse.GridSearch(gramfuse.Recipe(merge_method="regmean"), {"alpha": [0.5, 0.9]})
        with pytest.raises(PolicyViolationError, match="cohorts: open"):
            client.search(contributed.project, strategy, name="alphas")
        with pytest.raises(ConfigurationError, match="models_per_request"):
            client.search(contributed.project, strategy, name="alphas", models_per_request=0)
