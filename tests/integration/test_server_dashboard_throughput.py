"""What a server gets done hour by hour: added up from its rows, told as JSON, drawn and listed on the overview."""

import re
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from gramfuse_server.dashboard import formats
from gramfuse_shared.errors import FileUnreadableError
from support.browsing import HTMX, sign_in
from support.server_world import problem

PROJECT = "acme.tweets"
ADMIN = "/v1/admin/throughput"


@pytest.fixture
def busy(ready):
    """Within the world's second hour two merges and a failure, in the one after it nothing."""
    world, worker = ready
    coordinator = world.coordinator("acme")
    for job in ("first", "second", "bad"):
        body = {"recipe": {"merge_method": "linear"}}
        assert coordinator.put(f"/v1/projects/{PROJECT}/jobs/{job}", json=body).status_code == 201
    worker.run(PROJECT, "first")
    worker.run(PROJECT, "second")
    worker.merger.fail(worker.attempt(PROJECT, "bad"), FileUnreadableError("gone"))
    world.clock.advance(hours=1)
    return world


def test_merges_failures_and_bytes_are_added_up_by_the_hour(busy):
    hours = busy.operator.get(f"{ADMIN}?hours=3").json()["hours"]
    begins = [datetime.fromisoformat(hour["begins_at"]) for hour in hours]
    assert begins[-1] <= busy.clock.now < begins[-1] + timedelta(hours=1)
    assert [after - before for before, after in pairwise(begins)] == [timedelta(hours=1)] * 2
    models = busy.operator.get("/v1/admin/models").json()["items"]
    contributions = busy.operator.get("/v1/admin/contributions").json()["items"]
    base = busy.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()["files"]
    received = sum(item["bytes"] for item in (*contributions, *base))
    told = [(hour["merges"], hour["failures"], hour["received_bytes"], hour["published_bytes"]) for hour in hours]
    assert told == [(0, 0, received, 0), (2, 1, 0, sum(model["bytes"] for model in models)), (0, 0, 0, 0)]


def test_what_lies_before_the_hours_that_are_asked_for_is_left_out(busy):
    assert [hour["merges"] for hour in busy.operator.get(f"{ADMIN}?hours=1").json()["hours"]] == [0]
    assert len(busy.operator.get(ADMIN).json()["hours"]) == 24
    week = busy.operator.get(f"{ADMIN}?hours=168").json()["hours"]
    assert (len(week), sum(hour["merges"] for hour in week)) == (168, 2)
    for hours in (0, 169, "x"):
        problem(busy.operator.get(f"{ADMIN}?hours={hours}"), 422, "request-malformed")
    busy.clock.advance(hours=24)
    assert sum(hour["merges"] for hour in busy.operator.get(ADMIN).json()["hours"]) == 0


def test_the_overview_lists_it_and_draws_the_same_document(busy):
    browser, _ = sign_in(busy)
    page = browser.get("/dashboard/").text
    (source,) = re.findall(r'data-source="([^"]+)"', page)
    drawn = browser.get(f"/dashboard/{source}")
    assert (drawn.status_code, drawn.headers["cache-control"]) == (200, "no-store")
    assert drawn.json() == busy.operator.get(ADMIN).json()
    listed = page[page.index('id="throughput"') : page.index('id="failures"')]
    for hour in drawn.json()["hours"]:
        if hour["published_bytes"]:
            assert '<td class="number">2</td><td class="number">1</td>' in listed
            assert formats.size(hour["published_bytes"]) in listed
    assert listed.count("<time") == 24
    part = browser.get("/dashboard/", headers=HTMX).text
    assert 'id="throughput-chart"' in part
    assert "<script" not in part


def test_only_operators_have_it(busy):
    problem(busy.coordinator("acme").get(ADMIN), 403, "role-required")
    problem(busy.client().get(ADMIN), 401, "unauthenticated")
    assert busy.client().get("/dashboard/throughput.json").status_code == 303
    member = sign_in(busy, busy.token("acme", "coordinator"))[0]
    assert member.get("/dashboard/throughput.json").status_code == 404
