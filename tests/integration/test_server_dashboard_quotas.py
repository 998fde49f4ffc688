"""Quotas of projects: told, changed by operators as JSON and on a page, kept to."""

import pytest

from support.browsing import csrf_of, require_well_made, sign_in
from support.server_world import make_contribution, problem

PROJECT = "acme.tweets"
ADMIN = f"/v1/admin/projects/{PROJECT}"
PAGE = f"/dashboard/projects/{PROJECT}/quota"


@pytest.fixture
def world(make_world):
    made = make_world()
    made.project("acme", "globex")
    return made


def rows(world):
    items = world.operator.get("/v1/admin/audit-log?action=project.quota").json()["items"]
    return [(item["token"], item["subject"], item["details"]) for item in items]


def send(browser, **fields):
    return browser.post(PAGE, data={"csrf": csrf_of(browser.get(PAGE))} | fields)


def test_a_quota_of_its_own_holds_instead_of_the_default(world):
    held, default = world.operator.get(ADMIN).json()["bytes"], world.services.settings.project_quota_bytes
    told = world.operator.put(f"{ADMIN}/quota", json={"bytes": held + 100}).json()
    assert (told["quota"], told["quota_is_default"]) == (held + 100, False)
    assert world.operator.put(f"{ADMIN}/quota", json={"bytes": held + 100}).json() == told
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    contribution = make_contribution(project, "acme")
    path = f"/v1/projects/{PROJECT}/contributions/{contribution.id}"
    refused = world.participant("acme").put_document(path, contribution.manifest)
    assert problem(refused, 413, "quota-exceeded")["facts"]["quota"] == held + 100
    assert world.operator.put(f"{ADMIN}/quota", json={"bytes": None}).json()["quota"] == default
    assert world.participant("acme").put_document(path, contribution.manifest).status_code == 201
    token = world.token(None, "operator").split("_")[1]
    assert rows(world) == [
        (token, PROJECT, {"bytes": None, "quota": default, "before": held + 100}),
        (token, PROJECT, {"bytes": held + 100, "quota": held + 100, "before": default}),
    ]


def test_less_than_what_is_held_is_refused_unless_it_is_said(world):
    held = world.operator.get(ADMIN).json()["bytes"]
    refused = world.operator.put(f"{ADMIN}/quota", json={"bytes": held - 1})
    assert problem(refused, 409, "conflict")["facts"] == {"held": held, "quota": held - 1}
    assert rows(world) == []
    assert world.operator.put(f"{ADMIN}/quota", json={"bytes": held}).status_code == 200
    told = world.operator.put(f"{ADMIN}/quota", json={"bytes": 0, "below_held": True}).json()
    assert (told["bytes"], told["quota"]) == (held, 0)
    assert 'max="1"' in sign_in(world)[0].get("/dashboard/projects").text  # a meter ends above where it begins


def test_a_quota_is_a_number_of_bytes(world):
    for body in ({}, {"bytes": -1}, {"bytes": 2**53}, {"bytes": "much"}, {"bytes": 1, "more": 2}):
        problem(world.operator.put(f"{ADMIN}/quota", json=body), 422, "request-malformed")


def test_a_merge_keeps_to_its_projects_own_quota(ready):
    world = ready[0]
    held = world.operator.get(ADMIN).json()["bytes"]
    world.operator.put(f"{ADMIN}/quota", json={"bytes": held + 100})
    order = world.coordinator("acme").put(
        f"/v1/projects/{PROJECT}/jobs/first", json={"recipe": {"merge_method": "linear"}}
    )
    assert problem(order, 413, "quota-exceeded")["facts"]["quota"] == held + 100


def test_nobody_but_an_operator_changes_a_quota(world):
    body = {"bytes": 10**15}
    problem(world.coordinator("acme").put(f"{ADMIN}/quota", json=body), 403, "role-required")
    problem(world.client().put(f"{ADMIN}/quota", json=body), 401, "unauthenticated")
    problem(world.operator.put("/v1/admin/projects/acme.other/quota", json=body), 404, "not-found")
    browser = sign_in(world, world.token("acme", "coordinator"))[0]
    assert browser.get(PAGE).status_code == 404
    form = {"csrf": csrf_of(browser.get("/dashboard/")), "kind": "own", "amount": "1", "unit": "GB"}
    assert browser.post(PAGE, data=form).status_code == 404
    assert sign_in(world)[0].post(PAGE, data=form).status_code == 403
    assert world.operator.get(ADMIN).json()["quota_is_default"]


def test_the_page_changes_a_quota_and_says_why_not(world):
    browser = sign_in(world)[0]
    require_well_made(browser.get(PAGE))
    assert send(browser, kind="own", amount="2.5", unit="GB").headers["location"] == f"../../projects/{PROJECT}"
    assert world.operator.get(ADMIN).json()["quota"] == 2_500_000_000
    assert 'value="2.5"' in browser.get(PAGE).text
    assert "2.5 GB" in browser.get(f"/dashboard/projects/{PROJECT}").text
    for amount in ("", "much", "-1", "1e9", "nan", "1" * 7, "<script>"):
        refused = send(browser, kind="own", amount=amount, unit="GB")
        assert refused.status_code == 422
        assert "a quota is a number" in refused.text
        assert "<script>" not in refused.text
    assert send(browser, kind="own", amount="0.001", unit="MB").status_code == 409
    assert send(browser, kind="own", amount="0.001", unit="MB", below="on").status_code == 303
    assert world.operator.get(ADMIN).json()["quota"] == 1000
    assert send(browser, kind="default").status_code == 303
    assert world.operator.get(ADMIN).json()["quota_is_default"]


def test_the_page_writes_a_quota_as_it_reads_it(world):
    browser = sign_in(world)[0]
    for size in (1, 10**6, 1500, 100 * 10**9, 2**40):
        world.operator.put(f"{ADMIN}/quota", json={"bytes": size, "below_held": True})
        page = browser.get(PAGE).text
        amount = page.split('name="amount"')[1].split('value="')[1].split('"')[0]
        unit = page.split("<option selected>")[1].split("<")[0]
        send(browser, kind="own", amount=amount, unit=unit, below="on")
        assert world.operator.get(ADMIN).json()["quota"] == size
