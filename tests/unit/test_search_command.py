"""`gramfuse search …`: the strategy that the options mean, the table, and how it stops."""

import json
from typing import Any, Self

import pytest

from gramfuse.cli import session
from gramfuse.cli.main import main
from gramfuse.searching.results import SearchProgress, SearchResult, Trial
from gramfuse.searching.strategies import GreedySearch, GridSearch, RandomSearch
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import RequestInfo

REGMEAN = Recipe(merge_method="regmean")
REQUEST = RequestInfo.model_validate(
    {"id": "s-0123456789", "project": "acme.tweets", "kind": "evaluate", "models": ["a"], "state": "open"}
    | {"policy": {"version": 1, "digest": "0" * 64}, "created_at": "2026-01-02T03:04:05Z"}
    | {"deadline": "2026-01-03T03:04:05Z", "asked": [{"organization": "acme", "state": "awaited"}]}
)


def trial(job: str, value: float) -> Trial:
    return Trial(job, f"words of {job}", 1, REGMEAN, value, {"acme": value, "globex": value})


class Client:
    """A client whose search tells its progress, and may be interrupted while it waits."""

    def __init__(self) -> None:
        self.interrupted = False
        self.strategy: Any = None
        self.settings: dict[str, Any] = {}
        self.known: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def search(self, project: str, strategy: Any, **settings: Any) -> SearchResult:
        on_request, on_progress = settings.pop("on_request"), settings.pop("on_progress")
        on_known = settings.pop("on_known")
        self.strategy, self.settings = strategy, settings | {"project": project}
        for job in self.known:
            on_known(job)
        on_progress(SearchProgress(1, 0, 2))
        on_request(REQUEST)
        on_progress(SearchProgress(1, 1, 2, request=REQUEST))
        if self.interrupted:
            raise KeyboardInterrupt
        trials = (trial("s-1", 0.25), trial("s-2", 0.5))
        return SearchResult(settings["metric"], settings["averaging"], trials[1], trials, (trials[1],))


@pytest.fixture
def client(monkeypatch):
    made = Client()
    monkeypatch.setattr(session, "open_client", lambda: made)
    return made


@pytest.mark.parametrize(
    ("command", "strategy"),
    [
        (["grid", "--values", "alpha=0.5,0.9", "--values", "ridge=0"], {"alpha": [0.5, 0.9], "ridge": [0.0]}),
        (["random", "--count", "3", "--seed", "7", "--range", "alpha=0.5,1"], {"alpha": (0.5, 1.0)}),
        (["random", "--count", "3", "--range", "ridge=0,1", "--same-weights"], {"ridge": (0.0, 1.0)}),
    ],
)
def test_options_become_the_strategy(client, command, strategy):
    name, *options = command
    assert main(["search", name, "acme.tweets", "--id", "s", "--method", "regmean", *options]) == 0
    expected = (
        GridSearch(REGMEAN, strategy)
        if name == "grid"
        else RandomSearch(
            REGMEAN, 3, seed=7 if "--seed" in options else 0, ranges=strategy, weights="--same-weights" not in options
        )
    )
    assert client.strategy == expected
    assert client.settings == {
        "project": "acme.tweets",
        "name": "s",
        "metric": "f1",
        "averaging": "organizations",
        "models_per_request": 8,
        "seconds": 7 * 24 * 3600,
        "keep": False,
    }


def test_the_table_is_sorted_names_the_best_and_says_what_it_was_chosen_on(client, capsys):
    options = ["--start", "acme", "--start", "globex", "--at-most", "3", "--metric", "loss", "--mean-over", "examples"]
    options += ["--models-per-request", "4", "--days", "1", "--keep"]
    assert main(["search", "greedy", "acme.tweets", "--id", "s", "--method", "linear", *options]) == 0
    assert client.strategy == GreedySearch(Recipe(merge_method="linear"), ("acme", "globex"), 3)
    asked = {"metric": "loss", "averaging": "examples", "models_per_request": 4, "seconds": 86400, "keep": True}
    assert client.settings.items() >= asked.items()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["s-1", "s-2"]  # of losses the smallest comes first
    assert "the best loss has s-2 (words of s-2); it was chosen on these texts, so judge it on others" in lines[-1]
    main(["search", "greedy", "acme.tweets", "--id", "s", "--method", "linear"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["s-2", "s-1"]


def test_merges_that_were_there_already_are_told(client, capsys):
    client.known = [f"s-{number}" for number in range(7)]
    command = ["search", "greedy", "acme.tweets", "--id", "s", "--method", "linear"]
    assert main(command) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "7 merges were there already (s-0, s-1, s-2, s-3, s-4, …), and they are not made anew" in told
    assert main([*command, "--format", "json"]) == 0
    assert "there already" not in capsys.readouterr().err


def test_json_holds_every_trial(client, capsys):
    assert main(["search", "greedy", "acme.tweets", "--id", "s", "--method", "linear", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["job"] == "s-2"
    assert found["curve"] == ["s-2"]
    assert found["trials"][0]["by_organization"] == {"acme": 0.25, "globex": 0.25}


def test_ctrl_c_leaves_the_request_open_and_says_so(client, capsys):
    client.interrupted = True
    assert main(["search", "greedy", "acme.tweets", "--id", "s", "--method", "linear"]) == 130
    assert "request s-0123456789 stays open for answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--values", "alpha"], "does not name a parameter and its values"),
        (["--values", "alpha=high"], "is not a list of numbers"),
        (["--values", "alpha=1", "--metric", "beauty"], "--metric is 'beauty'"),
        (["--values", "alpha=1", "--mean-over", "texts"], "--mean-over is 'texts'"),
    ],
)
def test_options_that_mean_nothing_are_told(client, capsys, options, message):
    assert main(["search", "grid", "acme.tweets", "--id", "s", "--method", "regmean", *options]) == 1
    assert message in capsys.readouterr().err
    assert client.strategy is None


@pytest.mark.parametrize("ends", ["0.5", "1,0.5", "0,1,2"])
def test_a_range_has_two_ends_in_order(client, capsys, ends):
    command = ["search", "random", "acme.tweets", "--id", "s", "--method", "regmean", "--count", "2"]
    assert main([*command, "--range", f"alpha={ends}"]) == 1
    assert "is not a range" in capsys.readouterr().err
