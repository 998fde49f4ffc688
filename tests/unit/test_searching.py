"""Judging by everybody's evaluations, and the loop against a coordinator's client that remembers."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from gramfuse.searching.judging import goodness, is_answered_by, judge
from gramfuse.searching.running import Search
from gramfuse.searching.strategies import GreedySearch, GridSearch
from gramfuse_shared.contract.http_api import Contribution, Job, PolicyVersion, SubmittedJob
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import RequestCreate, RequestInfo
from gramfuse_shared.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    PolicyViolationError,
    RecipeInvalidError,
    RequestFailedError,
    RequestMalformedError,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
OPEN = Policy(cohorts="open", requests=("evaluate",), minimum_cohort=2)
REGMEAN = Recipe(merge_method="regmean")
NAMES = ("acme", "globex", "hooli", "initech")
REFERENCE = {"version": 1, "digest": "0" * 64}
CONTRIBUTION = {name: f"{number:064x}" for number, name in enumerate(NAMES, 7)}


def place(organization: str, scores: list[dict[str, Any]] | None = None, state: str = "accepted") -> dict[str, Any]:
    return {"organization": organization, "state": state, "scores": scores or []}


def score(model: str | None, value: float, *, examples: int = 100, metric: str = "f1") -> dict[str, Any]:
    return {"model": model, "examples": examples, "metrics": {metric: value}}


def request(places: list[dict[str, Any]], **changes: Any) -> RequestInfo:
    document = {"id": "s-1", "project": "acme.tweets", "kind": "evaluate", "models": ["a"], "state": "complete"}
    times = {"policy": REFERENCE, "created_at": NOW, "deadline": NOW}
    return RequestInfo.model_validate(document | times | {"asked": places} | changes)


# --- judging ---------------------------------------------------------------------------------------------------------


def test_organizations_count_alike_or_by_their_examples_and_own_models_do_not_count():
    asked = request(
        [
            place("acme", [score("a", 0.2, examples=300), score(None, 0.9)]),
            place("globex", [score("a", 0.6, examples=100)]),
            place("stranger", [score("a", 1.0)]),
        ]
    )
    judges = {"acme", "globex"}
    assert judge(asked, judges, "f1", "organizations")["a"].value == pytest.approx(0.4)
    found = judge(asked, judges, "f1", "examples")
    assert found.keys() == {"a"}
    assert found["a"].value == pytest.approx(0.3)
    assert found["a"].by_organization == {"acme": 0.2, "globex": 0.6}


def test_a_model_that_somebody_has_not_scored_is_not_judged():
    asked = request([place("acme", [score("a", 0.2)]), place("globex", state="awaited")])
    assert judge(asked, {"acme", "globex"}, "f1", "organizations") == {}
    assert not is_answered_by(asked, {"acme", "globex"})
    assert is_answered_by(asked, {"acme"})


def test_a_metric_that_is_not_there_is_an_error_which_names_those_that_are():
    asked = request([place("acme", [score("a", 2.0, metric="perplexity")])])
    with pytest.raises(ConfigurationError, match="acme's evaluation of a has no f1, but perplexity"):
        judge(asked, {"acme"}, "f1", "organizations")


def test_less_loss_is_better():
    asked = request(
        [place("acme", [score("a", 2.0, metric="loss"), score("b", 3.0, metric="loss")])], models=["a", "b"]
    )
    found = judge(asked, {"acme"}, "loss", "organizations")
    assert goodness(found["a"], "loss") > goodness(found["b"], "loss")
    assert goodness(found["a"], "f1") < goodness(found["b"], "f1")


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass
class Coordinator:
    """The calls of the client that a search makes; participants answer at once, what `worth` says of the members.

    As the server does it, a request asks the organizations of its models' cohorts alone.
    """

    worth: dict[str, float] = field(
        default_factory=lambda: {"acme": 0.1, "globex": 0.2, "hooli": -0.1, "initech": 0.05}
    )
    policy_: Policy = OPEN
    late: frozenset[str] = frozenset()
    metric: str = "f1"
    submitted: dict[str, Recipe] = field(default_factory=dict)
    asked: dict[str, RequestInfo] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def policy(self, _project: str) -> PolicyVersion:
        return PolicyVersion(version=1, digest=self.policy_.content_digest(), policy=self.policy_, created_at=NOW)

    def contributions(self, _project: str) -> list[Contribution]:
        listed = [
            {"id": identifier, "organization": name, "state": "accepted", "counts": True}
            for name, identifier in CONTRIBUTION.items()
        ]
        listed.append({"id": "f" * 64, "organization": "acme", "state": "accepted", "counts": False})
        return [
            Contribution.model_validate(one | {"policy": REFERENCE, "bytes": 1, "created_at": NOW}) for one in listed
        ]

    def submit(self, _project: str, recipe: Recipe, *, job: str) -> SubmittedJob:
        is_new = job not in self.submitted
        if is_new:
            self.calls.append(f"merge {'+'.join(self._members(recipe))}")
        assert self.submitted.setdefault(job, recipe) == recipe
        return SubmittedJob.model_validate(self._job(job).model_dump() | {"new": is_new})

    def wait(self, _project: str, job: str, *, on_progress: Any) -> Job:
        on_progress(self._job(job))
        return self._job(job)

    def requests(self, _project: str) -> list[RequestInfo]:
        return list(self.asked.values())

    def request(self, _project: str, name: str) -> RequestInfo:
        if name not in self.asked:
            raise NotFoundError(name)
        return self.asked[name]

    def pose(self, _project: str, body: RequestCreate, *, request: str) -> RequestInfo:
        models = body.models
        gone = [model for model in models if model in self.deleted]
        if gone:
            msg = f"there is no model {gone[0]}"
            raise NotFoundError(msg)
        self.calls.append(f"ask about {len(models)}")
        cohorts = sorted({name for model in body.models for name in self._members(self.submitted[model])})
        places = [place(name, state="awaited") for name in cohorts]
        self.asked[request] = globals()["request"](places, id=request, models=models, state="open")
        return self.asked[request]

    def wait_for_request(self, _project: str, name: str, *, on_progress: Any) -> RequestInfo:
        on_progress(self.asked[name])
        found = self.asked[name]
        places = [
            place(one.organization, state="awaited")
            if one.organization in self.late
            else place(one.organization, [self._score(model, one.organization) for model in found.models])
            for one in found.asked
        ]
        self.asked[name] = request(places, id=name, models=found.models)
        return self.asked[name]

    def delete_model(self, _project: str, model: str) -> None:
        self.deleted.append(model)

    def _score(self, model: str, organization: str) -> dict[str, Any]:
        recipe = self.submitted[model]
        value = 0.5 + sum(self.worth[name] for name in self._members(recipe))
        alpha = recipe.parameters.alpha
        assert isinstance(alpha, float)
        return score(model, round(value - (alpha - 0.7) ** 2 + NAMES.index(organization) / 1000, 9), metric=self.metric)

    @staticmethod
    def _members(recipe: Recipe) -> list[str]:
        named = {identifier: name for name, identifier in CONTRIBUTION.items()}
        return sorted(named[entry.model] for entry in recipe.models)

    def _job(self, job: str) -> Job:
        document = {"id": job, "project": "acme.tweets", "state": "succeeded", "stage": "x", "created_at": NOW}
        counts = {"attempt": 1, "progress": 1, "done_tasks": 1, "total_tasks": 1, "cohort": []}
        return Job.model_validate(document | counts | {"recipe": self.submitted[job]})


def search(client: Any, strategy: Any = None, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "project": "acme.tweets",
        "name": "s",
        "metric": "f1",
        "averaging": "organizations",
        "models_per_request": 8,
        "seconds": 3600,
        "keep": False,
        "on_request": lambda _: None,
        "on_progress": lambda _: None,
        "on_known": lambda _: None,
    }
    return Search(client=client, strategy=strategy or GreedySearch(REGMEAN), **settings | changes).run()


def test_a_greedy_search_ends_with_those_that_help_judged_by_everybody():
    client = Coordinator()
    told: list[str] = []
    found = search(client, on_request=lambda request: told.append(request.id))
    assert found.best.words == "acme+globex+initech"
    assert set(found.best.by_organization) == set(NAMES)
    assert [trial.words for trial in found.curve] == ["acme+globex", "acme+globex+initech", "acme+globex+hooli+initech"]
    assert [trial.round for trial in found.curve] == [1, 2, 3]
    values = [trial.value for trial in found.curve]
    assert values[0] < values[1] > values[2]
    # six pairs ask everybody; two triples do not, so everybody's merge is among them and judged before its round
    assert client.calls == [
        "merge acme+globex", "merge acme+hooli", "merge acme+initech", "merge globex+hooli",
        "merge globex+initech", "merge hooli+initech", "ask about 6",
        "merge acme+globex+hooli", "merge acme+globex+initech", "ask about 2",
        "merge acme+globex+hooli+initech", "ask about 1",
    ]  # fmt: skip
    assert told == list(client.asked)
    assert set(client.deleted) == {trial.job for trial in found.trials} - {found.best.job}
    assert len(client.deleted) == len(set(client.deleted))


def test_where_the_tried_cohorts_leave_somebody_out_everybodys_merge_is_tried_beside_them():
    client = Coordinator()
    found = search(client, GreedySearch(REGMEAN, start=("acme", "globex"), at_most=2), models_per_request=1)
    assert client.calls == ["merge acme+globex+hooli+initech", "merge acme+globex", "ask about 2"]
    assert [(trial.words, trial.round) for trial in found.trials] == [
        ("acme+globex+hooli+initech", 0),
        ("acme+globex", 1),
    ]
    assert all(set(trial.by_organization) == set(NAMES) for trial in found.trials)


def test_the_same_search_again_merges_and_asks_nothing_more():
    client = Coordinator()
    known: list[str] = []
    first = search(client, on_known=known.append)
    search(Coordinator(), models_per_request=2, on_known=known.append)  # everybody's merge is in several portions
    assert known == []
    client.calls.clear()
    assert search(client, models_per_request=3, on_known=known.append) == first  # and in other portions
    assert client.calls == []
    assert known == [trial.job for trial in first.trials]


def test_an_interrupted_search_goes_on_where_it_was():
    client = Coordinator()

    def interrupt(request: RequestInfo) -> None:
        if len(request.models) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(client, on_request=interrupt)
    client.calls.clear()
    uninterrupted = search(Coordinator())
    assert search(client) == uninterrupted
    assert client.calls == ["merge acme+globex+hooli+initech", "ask about 1"]  # the open request was waited for


def test_a_grid_is_judged_in_portions_and_only_the_best_is_left():
    client = Coordinator()
    shown: list[tuple[int, int]] = []
    strategy = GridSearch(REGMEAN, {"alpha": [0.1, 0.9, 0.7, 0.5, 0.3]})
    found = search(
        client,
        strategy,
        models_per_request=2,
        on_progress=lambda progress: shown.append((progress.judged, progress.proposed)),
    )
    assert found.best.words == "alpha 0.7"
    assert [call for call in client.calls if call.startswith("ask")] == ["ask about 2", "ask about 2", "ask about 1"]
    assert shown == sorted(shown)
    assert {proposed for _, proposed in shown} == {5}
    assert found.to_json()["best"]["job"] == found.best.job
    assert len(client.deleted) == 4
    assert search(Coordinator(), strategy, keep=True).trials
    kept = Coordinator()
    search(kept, strategy, keep=True)
    assert kept.deleted == []


def test_of_losses_the_smallest_is_the_best():
    found = search(Coordinator(metric="loss"), GridSearch(REGMEAN, {"alpha": [0.7, 0.1]}), metric="loss")
    assert found.best.words == "alpha 0.1"


def test_whoever_misses_the_deadline_ends_the_search_and_the_next_one_asks_anew():
    client = Coordinator(late=frozenset({"hooli"}))
    with pytest.raises(RequestFailedError, match="hooli missed the deadline"):
        search(client)
    (first,) = client.asked
    client.late = frozenset()
    search(client)
    assert f"{first}-retry-2" in client.asked


def test_a_recipes_models_are_the_cohort_and_the_judges():
    models = [{"model": name} for name in ("globex", "initech", CONTRIBUTION["acme"])]
    recipe = Recipe.model_validate({"merge_method": "regmean", "models": models})
    found = search(Coordinator(), GreedySearch(recipe))
    assert set(found.best.by_organization) == {"acme", "globex", "initech"}
    recipe = Recipe.model_validate({"merge_method": "regmean", "models": [{"model": "nobody"}]})
    with pytest.raises(RecipeInvalidError, match="nobody has no contribution that counts"):
        search(Coordinator(), GreedySearch(recipe))


def test_a_beaten_model_that_another_search_of_the_name_needs_is_told():
    client = Coordinator()
    search(client)
    with pytest.raises(ConflictError, match="a name of its own"):
        search(client, GreedySearch(REGMEAN, start=("acme", "hooli", "initech")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohorts": "frozen"}, "cohorts: open"),
        ({"requests": ()}, "not evaluate"),
        ({"methods": ("linear",)}, "not regmean"),
    ],
)
def test_a_project_that_is_not_open_to_it_is_refused_before_anything_is_merged(changes, message):
    client = Coordinator(policy_=OPEN.model_copy(update=changes))
    with pytest.raises(PolicyViolationError, match=message):
        search(client)
    assert client.calls == []


def test_a_name_that_leaves_no_room_for_names_is_refused():
    with pytest.raises(RequestMalformedError, match="cannot be the name"):
        search(Coordinator(), name="s" * 50)
