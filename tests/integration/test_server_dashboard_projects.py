"""The dashboard's pages of projects, and the same as JSON."""

import html
import re

import pytest
import yaml

from gramfuse_server.dashboard import sources
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake.uploads import used_bytes
from gramfuse_server.tables import ContributionRow, ProjectRow, UploadRow
from gramfuse_shared.contract.identity import fingerprint_of
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.reporting.policies import describe_policy
from support.answers import REQUESTS, give_scores
from support.browsing import HTMX, sign_in
from support.server_world import OPEN_POLICY, problem
from support.worker_world import MEMBERS, InProcessWorker, contribute

PROJECT = "acme.tweets"
PAGE = f"/dashboard/projects/{PROJECT}"
ADMIN = f"/v1/admin/projects/{PROJECT}"
POLICY = OPEN_POLICY.model_copy(
    update={"requests": ("evaluate",), "release": ReleaseGate(metric="f1", mean=0.9), "minimum_evaluation_examples": 50}
)
HOSTILE = "<script>alert('ours')</script>\"><img src=x onerror=alert(1)>"


def begin_asked(world, settings):
    worker = InProcessWorker(world, settings)
    project = world.project(*MEMBERS, policy=POLICY)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    worker.inspect_all()
    world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/first", json={"recipe": {"merge_method": "linear"}})
    worker.run(PROJECT, "first")
    asked = world.coordinator("acme").put(f"{REQUESTS}/eval-1", json={"kind": "evaluate", "models": ["first"]})
    assert asked.status_code == 201, asked.text
    assert give_scores(world, "eval-1", "globex", {"first": {"f1": 0.4321}}).status_code == 201


@pytest.fixture
def world(begun):
    return begun(begin_asked)[0]


@pytest.fixture
def browser(world):
    return sign_in(world)[0]


def test_the_list_of_projects_has_state_members_bytes_and_quota(world, browser):
    page = browser.get("/dashboard/projects").text
    (listed,) = world.operator.get("/v1/admin/projects").json()["items"]
    with reading(world.services.database) as session:
        assert listed["bytes"] == used_bytes(session, PROJECT) > 0
    assert listed["quota"] == world.services.settings.project_quota_bytes
    assert f'<a href="projects/{PROJECT}">{PROJECT}</a>' in page
    assert 'state ready">ready' in page
    assert f'<meter value="{listed["bytes"]}" max="{listed["quota"]}"' in page
    assert "3 members, policy 1" in page


def test_the_list_of_projects_goes_on_where_it_is_long(world, browser, monkeypatch):
    monkeypatch.setattr(sources, "ROWS", 1)
    world.project("globex")
    page = browser.get("/dashboard/projects").text
    assert PROJECT in page
    assert "globex.tweets" not in page
    following = re.search(r'<a href="(projects\?cursor=[\w%-]+)" rel="next">', page)[1]
    page = browser.get(f"/dashboard/{following}").text
    assert "globex.tweets" in page
    assert PROJECT not in page
    assert browser.get("/dashboard/projects?cursor=nonsense").status_code == 422
    assert browser.get(f"/dashboard/projects?cursor={'A' * 600}").status_code == 422


def test_a_projects_page_tells_who_accepted_what_by_which_key(world, browser):
    world.organization("initrode")
    world.coordinator("acme").put(f"/v1/projects/{PROJECT}/participants/initrode")
    document = world.operator.get(ADMIN).json()
    page = browser.get(PAGE).text
    for member in document["participants"]:
        assert member["organization"] in page
        assert member["identity"] is None or fingerprint_of(member["identity"]) in page
    assert page.count('state accepted">version 1') == 3
    assert page.count('state open">none yet') == 1
    assert document["base"] in page
    later = POLICY.model_copy(update={"minimum_evaluation_examples": 60}).model_dump(mode="json")
    world.coordinator("acme").put(f"/v1/projects/{PROJECT}/policies/2", json=later)
    assert browser.get(PAGE).text.count('state open">version 1, not 2') == 3


def test_a_projects_page_has_its_policy_in_the_words_in_which_it_is_accepted_and_as_it_is_written(world, browser):
    page = html.unescape(browser.get(PAGE).text)
    version = world.operator.get(f"{ADMIN}/policy").json()
    assert Policy.model_validate(version["policy"]) == POLICY
    assert version["digest"] in page
    for sentence in describe_policy(POLICY):
        alarm = ' class="alert"' if sentence.startswith("UNSAFE") else ""
        assert f"<li{alarm}>{sentence}</li>" in page
    written = re.search(r'aria-labelledby="as-written">(.*?)</pre>', page, re.DOTALL)[1]
    assert Policy.model_validate(yaml.safe_load(written)) == POLICY


def test_a_projects_page_tells_of_contributions_jobs_models_and_who_has_answered(world, browser):
    page = browser.get(PAGE).text
    for item in world.operator.get(f"/v1/admin/contributions?project={PROJECT}").json()["items"]:
        assert item["id"] in page
    assert page.count('state accepted">accepted</span> <small title="Merges take this one') == 3
    assert 'state candidate">candidate' in page
    (request,) = world.operator.get(f"/v1/admin/requests?project={PROJECT}").json()["items"]
    states = {place["organization"]: place["state"] for place in request["asked"]}
    assert states == {"acme": "awaited", "globex": "accepted", "initech": "awaited"}
    for organization, state in states.items():
        assert f'{organization} <span class="state {state}">{state}</span>' in page
    assert "1 of 3" in page
    assert "in 7 d" in page


def test_operators_are_told_no_scores_and_no_reason_of_a_rejection(world, browser):
    with transaction(world.services.database) as session:
        row = session.query(ContributionRow).filter_by(organization="globex").one()
        upload = session.get_one(UploadRow, row.upload)
        upload.state, upload.reason = "rejected", "tap 3 of globex is not symmetric"
    for member in ("acme", "initech"):
        give_scores(world, "eval-1", member, {"first": {"f1": 0.4321}})
    member_sees = world.participant("acme").get(f"/v1/projects/{PROJECT}/models/first").json()["release"]
    assert "0.4321" in member_sees["reason"]
    seen = browser.get(PAGE).text
    for path in ("models", "requests", "contributions", "projects/acme.tweets/models/first"):
        seen += world.operator.get(f"/v1/admin/{path}").text
    assert "0.4321" not in seen
    assert "not symmetric" not in seen
    assert 'state rejected">rejected' in seen


def test_text_of_others_is_escaped_on_a_projects_page(world, browser):
    with transaction(world.services.database) as session:
        upload = session.get_one(UploadRow, session.get_one(ProjectRow, PROJECT).base_upload)
        upload.state, upload.reason = "rejected", HOSTILE
    for page in (browser.get(PAGE), browser.get(PAGE, headers=HTMX)):
        assert "&lt;script&gt;alert(&#39;ours&#39;)" in page.text
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text


@pytest.mark.parametrize("name", ["acme.other", "%00", "%3Cscript%3E", "..%2Fstatic", "acme.tweets%0A", "A.B"])
def test_a_project_that_is_not_there_is_told_so_without_repeating_its_name(world, browser, name):
    answer = browser.get(f"/dashboard/projects/{name}")
    assert answer.status_code == 404
    assert "<script>" not in answer.text


def test_what_is_told_of_a_project_is_told_to_operators_alone(world):
    for path in ("", "/policy", "/jobs/first", "/jobs/first/log", "/jobs/first/diagnostics", "/models/first"):
        assert world.operator.get(f"{ADMIN}{path}").status_code == 200
        problem(world.coordinator("acme").get(f"{ADMIN}{path}"), 403, "role-required")
        problem(world.client().get(f"{ADMIN}{path}"), 401, "unauthenticated")
    problem(world.operator.get("/v1/admin/projects/acme.other"), 404, "not-found")
