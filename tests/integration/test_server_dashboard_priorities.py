"""A job's priority on the dashboard: shown to operators, and changed by them."""

import re

import pytest

from support.browsing import csrf_of, require_well_made, sign_in

PROJECT = "acme.tweets"
JOB = f"/dashboard/jobs/{PROJECT}/first"
LINEAR = {"recipe": {"merge_method": "linear"}}


@pytest.fixture
def world(ready):
    made, _ = ready
    assert made.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/first", json=LINEAR).status_code == 201
    return made


def priority(world):
    return world.operator.get(f"/v1/admin/projects/{PROJECT}/jobs/first").json()["priority"]


def test_an_operator_reads_and_changes_a_jobs_priority(world):
    browser = sign_in(world)[0]
    assert re.search(r"<dt>Priority</dt><dd>normal <a href", browser.get(JOB).text)
    page = browser.get(f"{JOB}/priority")
    require_well_made(page)
    assert 'value="normal" checked' in page.text
    done = browser.post(f"{JOB}/priority", data={"csrf": csrf_of(page), "priority": "high"})
    assert (done.status_code, done.headers["location"]) == (303, f"../../../jobs/{PROJECT}/first")
    assert priority(world) == "high"
    (entry,) = world.operator.get("/v1/admin/audit-log?action=job.prioritize").json()["items"]
    assert (entry["subject"], entry["details"]) == (f"{PROJECT}/first", {"priority": "high"})


def test_what_is_no_priority_comes_back_on_the_form_and_nobody_else_has_one(world):
    browser = sign_in(world)[0]
    form = {"csrf": csrf_of(browser.get(f"{JOB}/priority"))}
    refused = browser.post(f"{JOB}/priority", data=form | {"priority": "<script>"})
    assert refused.status_code == 422
    assert 'role="alert" class="alert">priority must be one of high, normal, low' in refused.text
    member = sign_in(world, world.token("acme", "coordinator"))[0]
    assert "Priority" not in member.get(JOB).text
    assert member.get(f"{JOB}/priority").status_code == 404
    own = {"csrf": csrf_of(member.get("/dashboard/")), "priority": "high"}
    assert member.post(f"{JOB}/priority", data=own).status_code == 404
    assert priority(world) == "normal"
