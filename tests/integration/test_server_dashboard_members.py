"""The dashboard as organizations see it: what their tokens may see by the API, and nothing else."""

import html
import json
import re

import pytest

from gramfuse_server.dashboard.entrance import SESSION_COOKIE
from gramfuse_server.dashboard.members.audience import MEMBERS as MEMBERS_PAGES
from gramfuse_server.dashboard.operators.audience import OPERATORS
from gramfuse_server.database import transaction
from gramfuse_server.tables import ContributionRow, TaskRow, TokenRow, UploadRow
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.contract.release_gate import ReleaseGate
from support.answers import REQUESTS, give_scores
from support.browsing import HTMX, csrf_of, links_of, require_well_made, sign_in
from support.server_world import OPEN_POLICY, problem
from support.worker_world import MEMBERS, contribute, merge_everybody

PROJECT = "acme.tweets"
API = f"/v1/projects/{PROJECT}"
PAGE = f"/dashboard/projects/{PROJECT}"
MODEL = f"/dashboard/models/{PROJECT}/regmean-1"
GATED = OPEN_POLICY.model_copy(update={"requests": ("evaluate",), "release": ReleaseGate(metric="f1", mean=0.9)})
HOSTILE = "<script>alert('ours')</script>\"><img src=x onerror=alert(1)>"


def begin_merged(world, settings):
    merge_everybody(world, settings)


def begin_asked(world, settings):
    merge_everybody(world, settings, policy=GATED)
    world.organization("umbrella")
    world.coordinator("acme").put(f"{REQUESTS}/eval-1", json={"kind": "evaluate", "models": ["regmean-1"]})
    assert give_scores(world, "eval-1", "globex", {"regmean-1": {"f1": 0.4321}}).status_code == 201


@pytest.fixture
def merged(begun):
    """A world with the model `regmean-1`."""
    return begun(begin_merged)[0]


@pytest.fixture
def asked(begun):
    """A world with a model that is held back, and an evaluation of it that globex alone has answered."""
    return begun(begin_asked)[0]


def enter(world, organization, role="participant"):
    return sign_in(world, world.token(organization, role))[0]


def own_contribution(world, organization):
    items = world.participant(organization).get(f"{API}/contributions?organization={organization}").json()["items"]
    return items[0]["id"]


def addresses(world):
    """Every address of members' pages, filled in."""
    names = {
        "project": PROJECT,
        "job": "regmean-1",
        "request": "eval-1",
        "contribution": own_contribution(world, "acme"),
        "organization": "globex",
    }
    identifier = world.token("acme", "participant").split("_")[1]
    return {at: at.format(**names, token=identifier) for at in MEMBERS_PAGES.pages}


def test_every_page_of_a_member_is_well_made_and_leads_nowhere_but_to_pages_that_are_there(asked):
    browser = enter(asked, "acme", "coordinator")
    reached = set()
    for at, path in addresses(asked).items():
        page = browser.get(f"/dashboard{path}")
        require_well_made(page)
        assert page.text.count("<h1") == 1, at
        reached |= links_of(page)
    for link in reached - {"/dashboard/sign-out"}:
        assert link.startswith("/dashboard/")
        assert browser.get(link).status_code == 200, link


def test_what_is_others_does_not_exist_for_a_member(asked):
    strangers, member = enter(asked, "umbrella", "coordinator"), enter(asked, "acme")
    for at, path in addresses(asked).items():
        if "{project}" in at or "{token}" in at:
            assert strangers.get(f"/dashboard{path}").status_code == 404, at
    home = strangers.get("/dashboard/").text + strangers.get("/dashboard/projects").text
    assert PROJECT not in home
    for at in OPERATORS.pages.keys() - MEMBERS_PAGES.pages.keys():
        assert member.get(f"/dashboard{at}".replace("{project}", PROJECT)).status_code == 404
    operator = sign_in(asked)[0]
    for at in MEMBERS_PAGES.pages.keys() - OPERATORS.pages.keys():
        assert operator.get(f"/dashboard{addresses(asked)[at]}").status_code == 404, at


def test_a_members_session_opens_the_dashboard_and_not_the_api_and_ends_with_its_token(merged):
    browser, answer = sign_in(merged, merged.token("globex", "participant"))
    cookie = next(found for found in answer.headers.get_list("set-cookie") if found.startswith(SESSION_COOKIE))
    assert {"httponly", "samesite=strict", "path=/dashboard"} <= {part.strip().lower() for part in cookie.split(";")}
    secret = browser.cookies[SESSION_COOKIE]
    for sent in ({"cookie": f"{SESSION_COOKIE}={secret}"}, {"authorization": f"Bearer {secret}"}):
        problem(merged.client().get(API, headers=sent), 401, "unauthenticated")
    entry = merged.operator.get("/v1/admin/audit-log?action=dashboard.sign-in").json()["items"][0]
    assert (entry["organization"], entry["token"]) == ("globex", merged.token("globex", "participant").split("_")[1])
    assert browser.get(PAGE).status_code == 200
    with transaction(merged.services.database) as session:
        session.get_one(TokenRow, entry["token"]).revoked_at = merged.clock()
    assert browser.get(PAGE).headers["location"] == "../sign-in"
    assert browser.get(f"{MODEL}/files/config.json").status_code == 303
    later = enter(merged, "globex", "coordinator")
    merged.clock.advance(hours=8)
    assert later.get(PAGE).status_code == 303


def test_home_tells_what_waits_for_an_organization_and_how_it_is_done(asked):
    page = enter(asked, "initech").get("/dashboard/").text
    assert f'href="requests/{PROJECT}/eval-1">eval-1</a>' in page
    assert "gramfuse participate" in page
    assert "eval-1" not in enter(asked, "globex").get("/dashboard/").text
    later = GATED.model_copy(update={"minimum_evaluation_examples": 60}).model_dump(mode="json")
    asked.coordinator("acme").put(f"{API}/policies/2", json=later)
    for path in ("/dashboard/", PAGE):
        page = enter(asked, "globex").get(path).text
        assert "accept version 2 of the policy" in page
        assert f"gramfuse project join {PROJECT}</code>" in page
        assert "accept" not in re.findall(r"<form.*?</form>", page, re.DOTALL)[0]
    asked.accept_policy(PROJECT, "globex")
    assert "accept version 2 of the policy" not in enter(asked, "globex").get("/dashboard/").text


def test_a_contribution_made_under_an_earlier_policy_is_told_everywhere_to_be_sent_again(merged):
    assert f"projects/{PROJECT}/merge" in enter(merged, "acme", "coordinator").get(PAGE).text
    later = OPEN_POLICY.model_copy(update={"minimum_cohort": 2}).model_dump(mode="json")
    merged.coordinator("acme").put(f"{API}/policies/2", json=later)
    merged.accept_policy(PROJECT, "globex")
    assert f"projects/{PROJECT}/merge" not in enter(merged, "acme", "coordinator").get(PAGE).text
    (item,) = merged.participant("globex").get(f"{API}/contributions?organization=globex").json()["items"]
    assert (item["state"], item["counts"], item["passed_over"]) == ("accepted", False, "policy")
    browser = enter(merged, "globex")
    for path in ("/dashboard/", "/dashboard/projects", PAGE, f"/dashboard/contributions/{PROJECT}/{item['id']}"):
        page = browser.get(path).text
        assert "made under version 1 of the policy: push again" in page, path
        assert ">counts<" not in page
    assert f"gramfuse contribution push {PROJECT}" in browser.get("/dashboard/").text
    merged.clock.advance(seconds=1)
    newer = contribute(merged, merged.participant("globex").get(API).json(), "globex", seed=9).id
    merged.accept_contribution(newer)
    again = merged.participant("globex").get(f"{API}/contributions?organization=globex").json()["items"]
    assert {each["id"]: each["passed_over"] for each in again} == {item["id"]: "newer", newer: None}
    assert "push again" not in browser.get("/dashboard/").text
    assert "a newer one took its place" in browser.get(PAGE).text


def test_a_coordinator_takes_an_invitation_back_after_a_question(merged):
    merged.organization("globx")
    merged.coordinator("acme").put(f"{API}/participants/globx")
    at = f"{PAGE}/participants/globx/uninvite"
    assert at not in links_of(enter(merged, "globex").get(PAGE))
    assert enter(merged, "globex").get(at).status_code == 403
    browser = enter(merged, "acme", "coordinator")
    page = browser.get(PAGE)
    assert [link for link in links_of(page) if link.endswith("/uninvite")] == [at]
    question = browser.get(at)
    require_well_made(question)
    done = browser.post(at, data={"csrf": csrf_of(question)})
    assert (done.status_code, done.headers["location"]) == (303, f"../../../../projects/{PROJECT}")
    assert "globx" not in browser.get(PAGE).text
    assert browser.get(at).status_code == 404
    joined = f"{PAGE}/participants/globex/uninvite"
    assert browser.post(joined, data={"csrf": csrf_of(browser.get(joined))}).status_code == 409
    assert browser.post(joined, data={"csrf": "0" * 64}).status_code == 403
    assert "globex" in browser.get(PAGE).text


def test_a_coordinator_removes_a_member_after_a_question(merged):
    at = f"{PAGE}/participants/globex/remove"
    assert at not in links_of(enter(merged, "initech").get(PAGE))
    assert enter(merged, "initech").get(at).status_code == 403
    browser = enter(merged, "acme", "coordinator")
    offered = {link for link in links_of(browser.get(PAGE)) if link.endswith("/remove")}
    assert offered == {at, at.replace("globex", "initech")}
    question = browser.get(at)
    require_well_made(question)
    assert "Remove globex from" in question.text
    assert browser.post(at, data={"csrf": "0" * 64}).status_code == 403
    done = browser.post(at, data={"csrf": csrf_of(question)})
    assert (done.status_code, done.headers["location"]) == (303, f"../../../../projects/{PROJECT}")
    assert enter(merged, "globex").get(PAGE).status_code == 404
    assert browser.get(at).status_code == 404
    itself = f"{PAGE}/participants/acme/remove"
    assert browser.post(itself, data={"csrf": csrf_of(browser.get(itself))}).status_code == 409


def test_a_member_leaves_after_a_question_and_is_led_to_the_projects_that_it_has(merged):
    at = f"{PAGE}/participants/globex/remove"
    browser = enter(merged, "globex")
    page = browser.get(PAGE)
    assert [link for link in links_of(page) if "/participants/" in link] == [at]
    question = browser.get(at)
    require_well_made(question)
    assert f"Leave {PROJECT}?" in question.text
    done = browser.post(at, data={"csrf": csrf_of(question)})
    assert (done.status_code, done.headers["location"]) == (303, "../../../../projects")
    assert browser.get(PAGE).status_code == 404
    assert PROJECT not in browser.get("/dashboard/projects").text


@pytest.mark.parametrize("whose", ["coordinator", "operator"])
def test_a_project_is_deleted_after_a_question_and_its_page_offers_nothing_more(merged, whose):
    at = f"{PAGE}/delete"
    assert at not in links_of(enter(merged, "globex").get(PAGE))
    assert enter(merged, "globex").get(at).status_code == 403
    browser = enter(merged, "acme", "coordinator") if whose == "coordinator" else enter(merged, None, "operator")
    assert at in links_of(browser.get(PAGE))
    merged.coordinator("acme").put(f"{API}/jobs/second", json={"recipe": {"merge_method": "linear"}})
    job = f"/dashboard/jobs/{PROJECT}/second"
    acts = tuple(f"{job}/{act}" for act in ("cancel", "retry", "priority"))
    assert [link for link in links_of(browser.get(job)) if link.endswith(acts)]
    question = browser.get(at)
    require_well_made(question)
    assert browser.post(at, data={"csrf": "0" * 64}).status_code == 403
    done = browser.post(at, data={"csrf": csrf_of(question)})
    assert (done.status_code, done.headers["location"]) == (303, f"../../projects/{PROJECT}")
    page = browser.get(PAGE)
    require_well_made(page)
    assert "It was deleted" in page.text
    offered = ("/delete", "/remove", "/uninvite", "/merge", "/quota")
    assert not [link for link in links_of(page) if link.endswith(offered)]
    assert "base pull" not in page.text
    assert '<span class="state deleted">deleted</span>' in browser.get("/dashboard/projects").text
    member = enter(merged, "globex")
    assert "It was deleted" in member.get(PAGE).text
    assert PROJECT not in member.get("/dashboard/").text
    assert merged.coordinator("acme").get(API).json()["deleted_at"] is not None
    assert not [link for link in links_of(browser.get(job)) if link.endswith(acts)]
    assert "gramfuse model pull" not in browser.get(MODEL).text


def test_a_members_project_page_is_what_the_api_tells_it(merged):
    page = enter(merged, "globex").get(PAGE).text
    member = merged.participant("globex")
    for item in member.get(f"{API}/contributions").json()["items"]:
        assert f"contributions/{PROJECT}/{item['id']}" in page
    for kind, name in (("jobs", "regmean-1"), ("models", "regmean-1")):
        assert f'href="../{kind}/{PROJECT}/{name}"' in page
    assert member.get(API).json()["policy"]["digest"] in page
    part = enter(merged, "globex").get(PAGE, headers=HTMX).text
    assert part.lstrip().startswith('<div id="content"')
    assert "csrf" not in part


def test_why_a_contribution_was_refused_is_told_to_its_own_organization_alone(merged):
    with transaction(merged.services.database) as session:
        row = session.query(ContributionRow).filter_by(organization="globex").one()
        upload = session.get_one(UploadRow, row.upload)
        upload.state, upload.reason = "rejected", HOSTILE
    at = f"/dashboard/contributions/{PROJECT}/{own_contribution(merged, 'globex')}"
    assert "It is rejected: &lt;script&gt;alert" in enter(merged, "globex").get("/dashboard/").text
    own = enter(merged, "globex").get(at)
    assert "&lt;script&gt;alert(&#39;ours&#39;)" in own.text
    assert "<script>alert" not in own.text
    for text in (
        "weights.safetensors",
        "encoder.query",
        'state failed">failed',
        "Was not sent, and is not on this server",
    ):
        assert text in own.text
    others = enter(merged, "acme", "coordinator").get(at).text + sign_in(merged)[0].get(at).text
    for text in ("alert(", "weights.safetensors", "encoder.query"):
        assert text not in others
    assert others.count('state rejected">rejected') == 2
    told = merged.operator.get(f"/v1/admin{API[3:]}/contributions/{own_contribution(merged, 'globex')}").json()
    assert (told["state"], told["reason"], told["files"]) == ("rejected", None, [])


def test_a_members_job_page_tells_its_own_distances_by_name_and_of_others_the_spread(merged):
    distances = {"acme": 0.111, "globex": 0.222, "initech": 0.333, "umbrella": 0.4}
    with transaction(merged.services.database) as session:
        for task in session.query(TaskRow).filter_by(job="regmean-1"):
            entry = {"parameters": ["encoder.3.query.weight"], "method": "regmean", "fallback": "none"}
            task.diagnostics = json.dumps([entry | {"distances": distances}])
    page = enter(merged, "globex").get(f"/dashboard/jobs/{PROJECT}/regmean-1").text
    assert "22.2%" in page
    assert "11.1% · 27.8% · 40.0%" in page
    assert "33.3%" not in page
    assert 'class="table heat own"' in page
    operators = sign_in(merged)[0].get(f"/dashboard/jobs/{PROJECT}/regmean-1").text
    assert "22.2%" not in operators
    assert "heat own" not in operators
    assert 'id="attempts"' in operators
    assert 'id="attempts"' not in page


def test_a_member_downloads_what_the_api_gives_it_with_the_same_headers_and_the_same_row(merged):
    browser, member = enter(merged, "globex"), merged.participant("globex")
    page = browser.get(MODEL)
    require_well_made(page)
    card = member.get(f"{API}/models/regmean-1/files/README.md")
    shown = re.sub(r"<[^>]+>", "", html.unescape(page.text))
    for line in (f"{PROJECT} · regmean-1", "No organization's text took part", "Nobody had evaluated this model when"):
        assert line in card.text
        assert line in shown
    files = member.get(f"{API}/models/regmean-1").json()["files"]
    for name in [file["name"] for file in files]:
        assert f"/dashboard/models/{PROJECT}/regmean-1/files/{name}" in links_of(page)
    before = len(merged.operator.get("/v1/admin/audit-log?action=file.download").json()["items"])
    for headers in ({}, {"range": "bytes=0-99"}, {"if-none-match": card.headers["etag"]}):
        here = browser.get(f"{MODEL}/files/README.md", headers=headers)
        there = member.get(f"{API}/models/regmean-1/files/README.md", headers=headers)
        assert (here.status_code, here.content) == (there.status_code, there.content)
        for name in ("etag", "accept-ranges", "content-disposition", "content-range", "cache-control"):
            assert here.headers.get(name) == there.headers.get(name)
    rows = merged.operator.get("/v1/admin/audit-log?action=file.download").json()["items"]
    assert len(rows) - before == 6
    assert rows[0]["details"] == rows[1]["details"]
    assert {row["organization"] for row in rows[:6]} == {"globex"}
    assert browser.head(f"{MODEL}/files/README.md").headers["content-length"] == str(len(card.content))
    assert browser.get(f"{MODEL}/files/nothing.bin").status_code == 404
    assert browser.get(f"{MODEL}/files/..%2F..%2Fstatic").status_code == 404


def test_a_receipt_is_downloaded_by_whoever_sees_the_model(merged):
    for browser in (enter(merged, "globex"), sign_in(merged)[0]):
        answer = browser.get(f"{MODEL}/receipt.json")
        assert 'filename="receipt.json"' in answer.headers["content-disposition"]
        told = merged.participant("globex").get(f"{API}/models/regmean-1").json()["receipt"]
        assert SignedReceipt.parse(answer.content) == SignedReceipt.model_validate(told)
        assert f"/dashboard/models/{PROJECT}/regmean-1/receipt.json" in links_of(browser.get(MODEL))
    assert sign_in(merged)[0].get(f"{MODEL}/files/config.json").status_code == 404
    merged.organization("umbrella")
    assert enter(merged, "umbrella").get(f"{MODEL}/receipt.json").status_code == 404


def test_gates_hold_back_in_a_browser_what_they_hold_back_from_the_api(asked):
    held = enter(asked, "globex")
    problem(asked.participant("globex").get(f"{API}/models/regmean-1/files/README.md"), 409, "model-not-released")
    assert held.get(f"{MODEL}/files/README.md").status_code == 409
    page = held.get(MODEL).text
    assert "They cannot be downloaded" in page
    assert "# acme.tweets" not in page
    assert "/files/" not in page
    assert enter(asked, "initech").get(f"{MODEL}/files/README.md").status_code == 200  # it is asked to evaluate it
    coordinators = OPEN_POLICY.model_copy(update={"downloads": "coordinator"}).model_dump(mode="json")
    asked.coordinator("acme").put(f"{API}/policies/2", json=coordinators)
    refused = enter(asked, "initech").get(f"{MODEL}/files/README.md")
    assert refused.status_code == 403
    assert "the policy leaves downloads to acme" in html.unescape(enter(asked, "initech").get(MODEL).text)
    assert enter(asked, "initech").get(f"{MODEL}/receipt.json").status_code == 200


def test_a_deleted_model_has_no_files_and_keeps_its_receipt(merged):
    assert merged.coordinator("acme").delete(f"{API}/models/regmean-1").status_code == 200
    browser = enter(merged, "globex")
    assert browser.get(f"{MODEL}/files/README.md").status_code == 404
    assert "It was deleted with the model" in browser.get(MODEL).text
    assert browser.get(f"{MODEL}/receipt.json").status_code == 200
    assert f"models/{PROJECT}/regmean-1" not in browser.get(PAGE).text


def test_a_requests_page_has_everybodys_answers_and_scores(asked):
    page = enter(asked, "initech").get(f"/dashboard/requests/{PROJECT}/eval-1").text
    for organization, state in {"acme": "awaited", "globex": "accepted", "initech": "awaited"}.items():
        assert re.search(rf'<td class="name">{organization}</td><td><span class="state {state}">', page)
    row = re.search(r'<td class="name">globex</td><td class="number wide">100</td>(.*?)</tr>', page, re.DOTALL)[1]
    assert re.findall(r">([^<]+)</td>", row) == ["–", "0.4321"]
    assert "Your answer is awaited" in page
    assert "Your answer is awaited" not in enter(asked, "globex").get(f"/dashboard/requests/{PROJECT}/eval-1").text


def test_members_see_the_tokens_of_their_organization_and_coordinators_revoke_them(merged):
    own = merged.token("globex", "participant").split("_")[1]
    others = merged.token("acme", "participant").split("_")[1]
    coordinator, participant = enter(merged, "globex", "coordinator"), enter(merged, "globex")
    for browser in (coordinator, participant):
        page = browser.get("/dashboard/tokens").text
        assert own in page
        assert others not in page
        assert 'action="tokens"' not in page
        form = {"csrf": csrf_of(browser.get("/dashboard/tokens")), "role": "operator", "days": "1"}
        assert browser.post("/dashboard/tokens", data=form).status_code == 404
        assert browser.get(f"/dashboard/tokens/{others}/revoke").status_code == 404
    assert participant.get(f"/dashboard/tokens/{own}/revoke").status_code == 403
    asked_first = coordinator.get(f"/dashboard/tokens/{own}/revoke")
    done = coordinator.post(f"/dashboard/tokens/{own}/revoke", data={"csrf": csrf_of(asked_first)})
    assert done.status_code == 303
    assert participant.get("/dashboard/").status_code == 303
    assert {member for member in MEMBERS if merged.token(member, "participant").split("_")[1] == own} == {"globex"}
