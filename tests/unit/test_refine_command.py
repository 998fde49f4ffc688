"""`gramfuse request refine`: what it asks of the SDK, what it shows, and how it stops."""

import json
from datetime import UTC, datetime
from typing import Any, Self

import pytest

from gramfuse.cli import session
from gramfuse.cli.main import main
from gramfuse.refining.planning import Step
from gramfuse.refining.running import RefinementProgress
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.requests import RequestInfo

NOW = datetime(2026, 1, 2, tzinfo=UTC)
COUNTS = {"attempt": 1, "progress": 1, "done_tasks": 1, "total_tasks": 1, "created_at": NOW}
MEMBER = {"contribution": "0" * 64, "organization": "globex"}
JOB = Job.model_validate(
    {"id": "pp", "project": "acme.tweets", "state": "succeeded", "stage": "done", "recipe": {"merge_method": "regmean"}}
    | COUNTS
    | {"cohort": [MEMBER]}
)
REQUEST = RequestInfo.model_validate(
    {"id": "pp-1", "project": "acme.tweets", "kind": "gram", "models": ["first"], "state": "open"}
    | {"policy": {"version": 1, "digest": "0" * 64}, "created_at": NOW, "deadline": NOW}
    | {"asked": [{"organization": "globex", "state": "accepted"}, {"organization": "acme", "state": "awaited"}]}
)
STEP = Step(number=1, total=2, origin="first", job="pp-1", request="pp-1", layers=("a.0.q.weight",))


class Client:
    """A client whose refinement tells its progress, and may be interrupted behind the first look."""

    def __init__(self, *, interrupted: bool = False) -> None:
        self.interrupted = interrupted
        self.called: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def refine(self, project: str, model: str, **settings: Any) -> Job:
        on_request, on_progress = settings.pop("on_request"), settings.pop("on_progress")
        on_known = settings.pop("on_known")
        self.called = settings | {"project": project, "model": model}
        on_request(REQUEST)
        if self.interrupted:
            raise KeyboardInterrupt
        on_known("pp-1")
        on_progress(RefinementProgress(STEP, REQUEST))
        on_progress(RefinementProgress(STEP, left={"globex": ("few_rows",)}))
        on_progress(RefinementProgress(STEP, job=JOB))
        on_progress(RefinementProgress(STEP))
        return JOB


@pytest.fixture
def client(monkeypatch):
    made = Client()
    monkeypatch.setattr(session, "open_client", lambda: made)
    return made


def test_by_default_the_published_algorithm_is_asked_for(client, capsys):
    assert main(["request", "refine", "acme.tweets", "first"]) == 0
    assert client.called == {
        "project": "acme.tweets",
        "model": "first",
        "result": None,
        "blocks_at_once": 1,
        "block": None,
        "weighting": "none",
        "alpha": None,
        "method": "regmean",
        "ridge": None,
        "seconds": 7 * 24 * 3600,
        "keep": False,
    }
    out, err = capsys.readouterr()
    assert "pp" in out
    known = "1 merge was there already (pp-1), and it is not made anew: another --id makes all of them anew"
    assert known in " ".join(err.split())
    assert "a.0.q.weight (globex: too few texts were measured)" in " ".join(out.split())


def test_every_option_reaches_the_sdk_and_json_is_the_last_job(client, capsys):
    options = ["--id", "pp", "--all-at-once", "--block", "merged", "--alpha", "0.5", "--days", "1", "--keep"]
    options += ["--weighting", "output_gradient"]
    assert main(["request", "refine", "acme.tweets", "first", *options, "--format", "json"]) == 0
    expected = {"result": "pp", "blocks_at_once": None, "block": "merged", "alpha": 0.5, "seconds": 86400, "keep": True}
    expected["weighting"] = "output_gradient"
    assert client.called.items() >= expected.items()
    assert json.loads(capsys.readouterr().out)["id"] == "pp"


def test_a_refit_and_its_ridge_reach_the_sdk(client):
    assert main(["request", "refine", "acme.tweets", "first", "--method", "refit", "--ridge", "0.1"]) == 0
    assert client.called.items() >= {"method": "refit", "ridge": 0.1}.items()


def test_ctrl_c_leaves_the_request_open_and_says_how_to_go_on(client, capsys):
    client.interrupted = True
    assert main(["request", "refine", "acme.tweets", "first"]) == 130
    told = " ".join(capsys.readouterr().err.split())
    assert "request pp-1 stays open" in told
    assert "`gramfuse request cancel acme.tweets pp-1` takes it back" in told
    assert "running the same command again resumes" in told


@pytest.mark.parametrize("command", [["refine", "acme.tweets", "first"], ["create", "acme.tweets", "gram", "first"]])
def test_a_block_is_nobody_elses(client, capsys, command):
    assert main(["request", *command, "--block", "theirs"]) == 1
    assert "--block is 'theirs'; it is one of merged, own" in capsys.readouterr().err
    assert client.called == {}
