"""The soak's judge: every kind of loss, doubling and damage is found, so that its zeros mean something."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

import support.paper_modules  # noqa: F401 - makes the package of the next lines known
from support.checkout import REPOSITORY

from benchmarks.soak.memory import growth_mb  # isort: skip
from benchmarks.soak.page import BEGIN, END, markdown  # isort: skip
from benchmarks.soak.probing import Downtime, Probe, judge_health  # isort: skip
from benchmarks.soak.records import Contributed, Found, Told, judge  # isort: skip

PROJECT = "acme.tweets"
DIGEST = "a" * 64
WEIGHTS = ("b" * 64,)
CONTRIBUTED = Contributed(PROJECT, "acme", "accepted", {"weights.safetensors": "c" * 64})
JOBS = {(PROJECT, "one"): {"merge_method": "linear"}, (PROJECT, "two"): {"merge_method": "linear"}}


def told(**changes):
    return replace(Told(contributions={DIGEST: CONTRIBUTED}, jobs=dict(JOBS)), **changes)


def found(**changes):
    """What a server has that kept everything once."""
    events = [(f"contribution.{action}", DIGEST) for action in ("create", "seal", "accept")]
    for job in ("one", "two"):
        events += [("job.submit", f"{PROJECT}/{job}"), ("model.publish", f"{PROJECT}/{job}")]
    whole = Found(
        contributions=[(DIGEST, CONTRIBUTED)],
        jobs=[(key, "succeeded") for key in JOBS],
        models=list(JOBS),
        weights=dict.fromkeys(JOBS, WEIGHTS),
        events=events,
        damaged=[],
    )
    return replace(whole, **changes)


def test_a_server_that_kept_everything_once_is_found_whole():
    assert judge(told(), found()).counts == {"lost": 0, "duplicated": 0, "corrupt": 0, "unfinished": 0}


WHOLE = found()
DAMAGE: dict[str, tuple[str, Callable[[], Found]]] = {
    "a contribution is gone": ("lost", lambda: found(contributions=[])),
    "it is open again": ("lost", lambda: found(contributions=[(DIGEST, replace(CONTRIBUTED, state="open"))])),
    "it has another file": (
        "lost",
        lambda: found(contributions=[(DIGEST, replace(CONTRIBUTED, files={"weights.safetensors": "d" * 64}))]),
    ),
    "it is another organization's": (
        "lost",
        lambda: found(contributions=[(DIGEST, replace(CONTRIBUTED, organization="globex"))]),
    ),
    "its acceptance is not in the log": (
        "lost",
        lambda: found(events=[e for e in WHOLE.events if "accept" not in e[0]]),
    ),
    "a job is gone": ("lost", lambda: found(jobs=WHOLE.jobs[:1], models=WHOLE.models[:1])),
    "a job failed": (
        "lost",
        lambda: found(jobs=[WHOLE.jobs[0], (WHOLE.jobs[1][0], "failed")], models=WHOLE.models[:1]),
    ),
    "a model is gone": ("lost", lambda: found(models=WHOLE.models[:1])),
    "a publication is not in the log": ("lost", lambda: found(events=WHOLE.events[:-1])),
    "a contribution is there twice": ("duplicated", lambda: found(contributions=[*WHOLE.contributions] * 2)),
    "one that nobody sent is there": (
        "duplicated",
        lambda: found(contributions=[*WHOLE.contributions, ("e" * 64, CONTRIBUTED)]),
    ),
    "a job is there twice": ("duplicated", lambda: found(jobs=[*WHOLE.jobs, WHOLE.jobs[0]])),
    "a model is there twice": ("duplicated", lambda: found(models=[*WHOLE.models, WHOLE.models[0]])),
    "a publication is twice in the log": ("duplicated", lambda: found(events=[*WHOLE.events, WHOLE.events[-1]])),
    "a file has other bytes": ("corrupt", lambda: found(damaged=["model.safetensors"])),
    "the same merge has other bytes": (
        "corrupt",
        lambda: found(weights={(PROJECT, "one"): WEIGHTS, (PROJECT, "two"): ("f" * 64,)}),
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_called_what_it_is(what):
    kind, damaged = DAMAGE[what]
    counts = judge(told(), damaged()).counts
    assert counts[kind] > 0
    assert all(counts[other] == 0 for other in {"duplicated", "corrupt"} - {kind}), counts


def test_a_part_that_was_acknowledged_and_is_not_listed_is_lost():
    assert judge(told(unlisted_parts=["weights.safetensors/3"]), found()).counts["lost"] == 1


def test_a_job_that_still_waits_is_late_and_not_lost():
    waiting = found(
        jobs=[WHOLE.jobs[0], (WHOLE.jobs[1][0], "queued")], models=WHOLE.models[:1], events=WHOLE.events[:-1]
    )
    assert judge(told(), waiting).counts == {"lost": 0, "duplicated": 0, "corrupt": 0, "unfinished": 1}


def test_probes_of_a_dead_api_are_downtime_and_all_others_count():
    quick = [Probe(number / 10, 0.002, well=True) for number in range(200)]
    slow, refused, late = Probe(5.01, 0.3, well=True), Probe(8.0, 0.001, well=False), Probe(12.05, 5.0, well=False)
    health = judge_health([*quick, slow, refused, late], [Downtime(7.5, 9.0)])
    assert (health.probes, health.failed) == (200 - 16 + 2, 1)
    assert (health.p50, health.most) == (2.0, 5000.0)
    assert judge_health([*quick, Probe(3.9, 1.0, well=False)], [Downtime(4.0, 4.5)]).failed == 0  # cut by the kill


def test_memory_grows_where_it_is_more_at_the_end_than_behind_the_first_third():
    steady = {1: [(at / 10, 100.0) for at in range(600)]}
    warming = {1: [(at / 10, min(100.0, 50 + at)) for at in range(600)]}
    leaking = {1: [(at / 10, 100 + at / 10) for at in range(600)], 2: steady[1]}
    assert growth_mb(steady, 0, 60) == growth_mb(warming, 0, 60) == 0
    assert growth_mb(leaking, 0, 60) == pytest.approx(30, abs=1)
    assert growth_mb({1: [(50.0, 100.0)]}, 0, 60) is None


def test_the_page_shows_the_results_on_record():
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "soak.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == markdown(results).strip()
    assert results["lost"] == results["duplicated"] == results["corrupt"] == 0
