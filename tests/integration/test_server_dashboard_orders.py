"""What people order in a browser: merges, their end, another attempt, a withdrawal; by the API's own code and rules."""

import html
import re

import pytest

from gramfuse_server.dashboard.forms import BOUNDS
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import FileUnreadableError
from support.browsing import csrf_of, require_well_made, sign_in
from support.worker_world import MEMBERS

PROJECT = "acme.tweets"
API = f"/v1/projects/{PROJECT}"
MERGE = f"/dashboard/projects/{PROJECT}/merge"
JOB = f"/dashboard/jobs/{PROJECT}"
EVERYBODY = {f"member:{member}": "on" for member in MEMBERS}


@pytest.fixture
def world(ready):
    return ready[0]


@pytest.fixture
def worker(ready):
    return ready[1]


@pytest.fixture
def browser(world):
    return enter(world, "acme", "coordinator")


def enter(world, organization, role="participant"):
    return sign_in(world, world.token(organization, role))[0]


def order(browser, job="first", *, members=EVERYBODY, **changes):
    form = {"csrf": csrf_of(browser.get(MERGE)), "job": job, "method": "linear", "parameters": ""}
    return browser.post(MERGE, data=form | members | changes)


def answer_question(browser, at):
    asked = browser.get(at)
    require_well_made(asked)
    return browser.post(at, data={"csrf": csrf_of(asked)})


def rows_of(world, action):
    items = world.operator.get(f"/v1/admin/audit-log?action={action}").json()["items"]
    return [(item["organization"], item["token"], item["subject"], item["details"]) for item in items]


def test_a_coordinator_orders_a_merge_as_the_api_would_have_it(world, worker, browser):
    ordered = order(browser)
    assert (ordered.status_code, ordered.headers["location"]) == (303, f"../../jobs/{PROJECT}/first")
    again = order(browser)
    assert again.status_code == 303
    same = world.coordinator("acme").put(f"{API}/jobs/first", json={"recipe": {"merge_method": "linear"}})
    assert same.status_code == 200  # it is the very submission
    cohort = sorted(member["contribution"] for member in same.json()["cohort"])
    token = world.token("acme", "coordinator").split("_")[1]
    assert rows_of(world, "job.submit") == [("acme", token, f"{PROJECT}/first", {"cohort": cohort})]
    worker.run(PROJECT, "first")
    assert 'state succeeded">succeeded' in browser.get(f"{JOB}/first").text
    assert "Cancel …" not in browser.get(f"{JOB}/first").text


def test_a_merge_under_an_old_name_of_other_contributions_is_shown_again_with_a_free_name(world, browser):
    assert 'placeholder="regmean-1"' in browser.get(MERGE).text
    assert order(browser, "regmean-1", method="regmean").status_code == 303
    assert 'placeholder="regmean-2"' in browser.get(MERGE).text
    mine = world.participant("globex").get(f"{API}/contributions?organization=globex").json()["items"][0]["id"]
    assert world.participant("globex").post(f"{API}/contributions/{mine}/withdraw").is_success
    left = {f"member:{member}": "on" for member in MEMBERS if member != "globex"}
    refused = order(browser, "regmean-1", members=left, method="regmean")
    assert refused.status_code == 409
    assert "regmean-1 is there already" in refused.text
    assert "globex" in refused.text


def test_an_order_says_method_members_and_parameters(world, browser):
    assert re.search(r'<option value="([^"]+)', browser.get(MERGE).text)[1] == "regmean"  # unless somebody chooses
    two = {"member:acme": "on", "member:globex": "on"}
    assert (
        order(browser, "two", members=two, method="regmean", parameters="alpha: 0.5\r\nridge: 0.1").status_code == 303
    )
    recipe = world.coordinator("acme").get(f"{API}/jobs/two").json()["recipe"]
    assert (recipe["merge_method"], [entry["model"] for entry in recipe["models"]]) == ("regmean", ["acme", "globex"])
    assert (recipe["parameters"]["alpha"], recipe["parameters"]["ridge"]) == (0.5, 0.1)


REFUSED = (
    ({"job": "Not a name"}, "a job's name is"),
    ({"method": "voodoo"}, "merge_method"),
    ({"parameters": "alpha: 7"}, "alpha lies between 0 and 1"),
    ({"parameters": "alpha: [&a x, *a]"}, "aliases are not read"),
    ({"parameters": "<script>alert(1)</script>: 1"}, "parameters"),
    ({"members": {}}, "choose the contributions"),
    ({"members": {"member:acme": "on"}}, "at least 2"),
    ({"members": {"member:nobody": "on", "member:acme": "on"}}, "nobody"),
)


def test_an_order_that_makes_no_job_is_shown_again_with_why(world, browser):
    for changes, why in REFUSED:
        again = order(browser, **changes)
        assert again.status_code == 422, changes
        assert why in html.unescape(again.text)
        assert "<script>alert" not in again.text
        assert 'role="alert"' in again.text
        for name in changes.keys() & {"job", "parameters"}:
            assert changes[name] in html.unescape(again.text)
    assert world.coordinator("acme").get(f"{API}/jobs").json()["items"] == []


def test_a_job_is_cancelled_and_tried_again_after_a_question(world, worker, browser):
    order(browser)
    done = answer_question(browser, f"{JOB}/first/cancel")
    assert (done.status_code, done.headers["location"]) == (303, f"../../../jobs/{PROJECT}/first")
    assert world.coordinator("acme").get(f"{API}/jobs/first").json()["state"] == "cancelled"
    assert answer_question(browser, f"{JOB}/first/retry").status_code == 303
    worker.merger.fail(worker.attempt(PROJECT, "first"), FileUnreadableError("the disk is gone"))
    assert "Retry …" in browser.get(f"{JOB}/first").text
    assert answer_question(browser, f"{JOB}/first/retry").status_code == 303
    worker.run(PROJECT, "first")
    job = world.coordinator("acme").get(f"{API}/jobs/first").json()
    assert (job["state"], job["attempt"]) == ("succeeded", 3)
    assert [details["attempt"] for *_, details in rows_of(world, "job.retry")] == [3, 2]
    assert len(rows_of(world, "job.cancel")) == 1
    for act in ("cancel", "retry"):
        assert answer_question(browser, f"{JOB}/first/{act}").status_code == 409


def test_a_member_withdraws_its_own_contribution_after_a_question(world, browser):
    order(browser)
    member = world.participant("globex")
    (own,) = member.get(f"{API}/contributions?organization=globex").json()["items"]
    at = f"/dashboard/contributions/{PROJECT}/{own['id']}"
    globex = enter(world, "globex")
    assert "deleted after 24 h" in globex.get(f"{at}/withdraw").text
    done = answer_question(globex, f"{at}/withdraw")
    assert (done.status_code, done.headers["location"]) == (303, f"../../../contributions/{PROJECT}/{own['id']}")
    assert member.get(f"{API}/contributions/{own['id']}").json()["state"] == "withdrawn"
    assert world.coordinator("acme").get(f"{API}/jobs/first").json()["state"] == "cancelled"
    details = {"contribution": own["id"], "cancelled_jobs": ["first"]}
    assert rows_of(world, "contribution.withdraw")[0][::3] == ("globex", details)
    assert "Withdraw …" not in globex.get(at).text
    assert answer_question(globex, f"{at}/withdraw").status_code == 303  # twice is as once
    assert len(rows_of(world, "contribution.withdraw")) == 1


def test_nobody_orders_who_does_not_coordinate_the_project_and_nobody_withdraws_what_is_others(world, browser):
    order(browser)
    (own,) = world.participant("globex").get(f"{API}/contributions?organization=globex").json()["items"]
    world.organization("umbrella")
    withdrawal = f"/dashboard/contributions/{PROJECT}/{own['id']}/withdraw"
    acts = {
        MERGE: {"job": "second", "method": "linear"} | EVERYBODY,
        f"{JOB}/first/cancel": {},
        f"{JOB}/first/retry": {},
    }
    for who, status in (
        (enter(world, "acme"), 403),
        (enter(world, "globex", "coordinator"), 403),
        (enter(world, "umbrella", "coordinator"), 404),
        (sign_in(world)[0], 404),
    ):
        csrf = {"csrf": csrf_of(who.get("/dashboard/"))}
        for at, form in acts.items():
            assert who.get(at).status_code == status, at
            assert who.post(at, data=form | csrf).status_code == status, at
        assert "Merge …" not in who.get(f"/dashboard/projects/{PROJECT}").text
        assert "Cancel …" not in who.get(f"{JOB}/first").text
    for who, status in ((browser, 403), (enter(world, "umbrella"), 404), (sign_in(world)[0], 404)):
        assert who.get(withdrawal).status_code == status
        assert who.post(withdrawal, data={"csrf": csrf_of(who.get("/dashboard/"))}).status_code == status
    assert [job["id"] for job in world.coordinator("acme").get(f"{API}/jobs").json()["items"]] == ["first"]
    assert world.participant("globex").get(f"{API}/contributions/{own['id']}").json()["state"] == "accepted"


def test_a_form_from_elsewhere_orders_nothing(world, browser):
    order(browser)
    (own,) = world.coordinator("acme").get(f"{API}/contributions?organization=acme").json()["items"]
    other = csrf_of(enter(world, "acme", "coordinator").get("/dashboard/"))
    withdrawal = f"/dashboard/contributions/{PROJECT}/{own['id']}/withdraw"
    for csrf in ("", "0" * 64, other):
        for at in (MERGE, f"{JOB}/first/cancel", f"{JOB}/first/retry", withdrawal):
            form = {"csrf": csrf, "job": "second", "method": "linear"} | EVERYBODY
            assert browser.post(at, data=form).status_code == 403
            assert world.client().post(at, data=form).status_code == 303
    assert order(browser, parameters="x" * BOUNDS.byte_count).status_code == 413
    assert [job["id"] for job in world.coordinator("acme").get(f"{API}/jobs").json()["items"]] == ["first"]
    assert rows_of(world, "contribution.withdraw") == []


def test_what_a_policy_does_not_let_merge_in_the_open_is_not_offered(make_world):
    world = make_world()
    world.project(*MEMBERS, policy=Policy(aggregation="secure", methods=("linear", "head"), heads="shared"))
    browser = enter(world, "acme", "coordinator")
    page = browser.get(MERGE)
    require_well_made(page)
    assert "gramfuse request sum" in page.text
    assert 'action="./merge"' not in page.text
    form = {"csrf": csrf_of(browser.get("/dashboard/")), "job": "first", "method": "linear"} | EVERYBODY
    refused = browser.post(MERGE, data=form)
    assert refused.status_code == 422
    assert "nothing but sums is merged" in refused.text
