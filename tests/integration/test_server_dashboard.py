"""The dashboard: who gets in, what is shown, and what the browser is allowed to do."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from gramfuse_server.dashboard import formats
from gramfuse_server.dashboard.entrance import FORM_COOKIE, SESSION_COOKIE
from gramfuse_server.database import transaction
from gramfuse_server.tables import TokenRow
from gramfuse_shared.errors import FileUnreadableError
from support.browsing import HTMX, csrf_of, links_of, require_well_made, sign_in

PROJECT = "acme.tweets"
PAGES = {
    "": "sign-in",
    "audit": "sign-in",
    "tokens": "sign-in",
    "projects": "sign-in",
    f"projects/{PROJECT}": "../sign-in",
    f"jobs/{PROJECT}/first": "../../sign-in",
    f"models/{PROJECT}/first": "../../sign-in",
}
"""Every page, and where it leads who has not signed in."""


def test_without_a_session_the_page_leads_to_the_sign_in_form(world):
    for path, target in PAGES.items():
        answer = world.client().get(f"/dashboard/{path}")
        assert (answer.status_code, answer.headers["location"], answer.text) == (303, target, "")
        part = world.client().get(f"/dashboard/{path}", headers=HTMX)
        assert (part.status_code, part.headers["hx-redirect"], part.text) == (204, target, "")


def test_the_dashboard_is_found_without_its_last_slash(world):
    answer = world.client().get("/dashboard")
    assert answer.status_code == 307
    assert answer.headers["location"].endswith("/dashboard/")


def test_the_bare_address_leads_to_the_dashboard(world):
    answer = world.client().get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "dashboard/")
    assert "/" not in world.client().get("/openapi.json").json()["paths"]


def test_an_operator_signs_in_and_sees_the_overview(world):
    browser, answer = sign_in(world)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    page = browser.get("/dashboard/")
    assert page.status_code == 200
    for heading in ("Live jobs", "Workers", "Ended jobs", "Newest contributions", "Projects", "Audit log"):
        assert heading in page.text
    assert page.headers["cache-control"] == "no-store"


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(world):
    _, answer = sign_in(world)
    cookie = next(c for c in answer.headers.get_list("set-cookie") if c.startswith(f"{SESSION_COOKIE}="))
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/dashboard"} <= parts
    assert world.token(None, "operator") not in cookie


@pytest.mark.parametrize("token", ["gf_nonsense", "gf_" + "0" * 16 + "_" + "0" * 64])
def test_an_unknown_token_is_told_so(world, token):
    browser, answer = sign_in(world, token)
    assert answer.status_code == 401
    assert "unknown, expired or revoked" in answer.text
    assert SESSION_COOKIE not in browser.cookies


def test_a_form_from_elsewhere_signs_nobody_in(world):
    browser = world.client()
    form = {"token": world.token(None, "operator")}
    assert browser.post("/dashboard/sign-in", data=form).status_code == 403
    browser.get("/dashboard/sign-in")
    assert browser.post("/dashboard/sign-in", data=form | {"csrf": "0" * 64}).status_code == 403
    assert SESSION_COOKIE not in browser.cookies
    assert FORM_COOKIE in browser.cookies


def test_signing_out_needs_the_pages_own_form_and_ends_the_session(world):
    browser, _ = sign_in(world)
    refused = browser.post("/dashboard/sign-out", data={"csrf": "0" * 64})
    assert refused.status_code == 403
    assert browser.get("/dashboard/").status_code == 200
    secret = browser.cookies[SESSION_COOKIE]
    answer = browser.post("/dashboard/sign-out", data={"csrf": csrf_of(browser.get("/dashboard/"))})
    assert answer.headers["location"] == "sign-in"
    browser.cookies.set(SESSION_COOKIE, secret)
    assert browser.get("/dashboard/").status_code == 303


def test_a_session_ends_with_its_token_and_with_its_time(world):
    browser, _ = sign_in(world)
    other, _ = sign_in(world)
    world.clock.advance(hours=9)
    assert browser.get("/dashboard/").status_code == 303
    other, _ = sign_in(world)
    with transaction(world.services.database) as session:
        identifier = world.token(None, "operator").split("_")[1]
        session.get_one(TokenRow, identifier).revoked_at = world.clock()
    assert other.get("/dashboard/").status_code == 303
    told = "Your session has ended. Please sign in again."
    assert told in other.get("/dashboard/sign-in").text
    assert SESSION_COOKIE not in other.cookies
    assert told not in other.get("/dashboard/sign-in").text


def test_the_browser_may_load_nothing_from_elsewhere_and_run_nothing_inline(world):
    browser, _ = sign_in(world)
    for path in ("/dashboard/", "/dashboard/sign-in", "/dashboard/projects", "/dashboard/static/app.css"):
        answer = browser.get(path)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_page_is_well_made_and_leads_nowhere_but_to_pages_that_are_there(ready):
    world, worker = ready
    world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/first", json={"recipe": {"merge_method": "linear"}})
    worker.run(PROJECT, "first")
    browser, _ = sign_in(world)
    reached = set()
    for path in PAGES:
        page = browser.get(f"/dashboard/{path}")
        require_well_made(page)
        reached |= links_of(page)
    reached.remove("/dashboard/sign-out")
    assert len(reached) > len(PAGES)
    for link in reached:
        assert link.startswith("/dashboard/")
        assert browser.get(link).status_code == 200, link


def test_a_page_asked_for_by_htmx_comes_without_its_frame_and_asks_for_itself_again(ready):
    browser, _ = sign_in(ready[0])
    for path in ("projects", f"projects/{PROJECT}"):
        part = browser.get(f"/dashboard/{path}", headers=HTMX)
        assert part.text.lstrip().startswith('<div id="content"')
        assert "<html" not in part.text
        assert "csrf" not in part.text
        assert links_of(part) & {f"/dashboard/{path}"}


def test_every_file_that_the_page_names_is_there(world):
    browser, _ = sign_in(world)
    names = set(re.findall(r'(?:src|href)="(static/[^"]+)"', browser.get("/dashboard/").text))
    assert len(names) >= 4
    for name in names:
        assert browser.get(f"/dashboard/{name}").status_code == 200
    assert browser.get("/dashboard/static/../pages.py").status_code == 404


def test_an_operator_sees_a_merge_happen(ready):
    world, worker = ready
    browser, _ = sign_in(world)
    assert "No job is waiting or running." in browser.get("/dashboard/").text
    body = {"recipe": {"merge_method": "linear"}}
    world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/first", json=body)
    assert "queued</span>" in browser.get("/dashboard/").text
    worker.merger.plan(worker.attempt(PROJECT, "first"), shard_bytes=worker.shard_bytes)
    running = browser.get("/dashboard/").text
    assert "running</span>" in running
    assert '<progress value="0.0" max="1"' in running
    assert "linear of 3: acme, globex, initech" in running
    worker.run(PROJECT, "first")
    assert "succeeded</span>" in browser.get("/dashboard/").text


def test_text_from_outside_is_escaped(ready):
    world, worker = ready
    body = {"recipe": {"merge_method": "linear"}}
    world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/first", json=body)
    worker.merger.fail(worker.attempt(PROJECT, "first"), FileUnreadableError("<script>alert(1)</script>"))
    browser, _ = sign_in(world)
    page = browser.get("/dashboard/").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


def test_an_empty_server_says_what_comes_next(world):
    browser, _ = sign_in(world)
    page = browser.get("/dashboard/").text
    for command in ("server worker", "job submit", "contribution push", "project create"):
        assert f"{command}</code>" in page
    assert "none so far" in page


def test_every_time_is_relative_and_exact_on_hover(ready):
    world, worker = ready
    world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/first", json={"recipe": {"merge_method": "linear"}})
    worker.run(PROJECT, "first")
    world.clock.advance(minutes=3)
    browser, _ = sign_in(world)
    page = browser.get("/dashboard/").text
    times = re.findall(r'<time datetime="([^"]+)" title="(\S+ \S+ UTC)">([^<]+)</time>', page)
    assert {told for _, _, told in times} >= {"now", "3 min ago"}
    for machine, exact, _ in times:
        assert formats.moment(datetime.fromisoformat(machine)) == exact
    assert len(re.findall(r"\bago\b", page)) == sum(told.endswith("ago") for *_, told in times)


def test_what_a_narrow_screen_hides_stands_under_the_name(ready):
    browser, _ = sign_in(ready[0])
    page = browser.get("/dashboard/").text
    assert re.search(
        rf'acme<small class="narrow"><a href="projects/{PROJECT}">{PROJECT}</a> · [\d.]+ k?B</small>', page
    )
    assert f'{PROJECT}</a><small class="narrow">3 members</small>' in page


def test_a_page_that_is_no_longer_live_can_say_so(world):
    browser, _ = sign_in(world)
    assert re.search(r'<p class="stale" role="status" hidden>', browser.get("/dashboard/").text)
    config = re.search(r'<meta name="htmx-config" content=\'([^\']+)\'', browser.get("/dashboard/").text)[1]
    assert 0 < json.loads(config)["timeout"] <= 10_000  # htmx waits for ever otherwise, and says nothing
    script = browser.get("/dashboard/static/app.js").text
    assert 'querySelector(".stale")' in script
    assert "htmx:sendError" in script


@pytest.mark.parametrize(
    ("ago", "told"),
    [
        (0.4, "now"),
        (1, "1 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (7200, "2 h ago"),
        (200_000, "2 d ago"),
        (-5, "now"),
    ],
)
def test_times_are_told_in_one_unit(ago, told):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert formats.since(now - timedelta(seconds=ago), now) == told


def test_commands_within_messages_are_code_and_everything_is_escaped():
    assert formats.coded("run `a <b>` & `c`, ok") == "run <code>a &lt;b&gt;</code> &amp; <code>c</code>, ok"
    assert formats.coded("no ` end") == "no ` end"
    assert formats.coded("<script>") == "&lt;script&gt;"


def test_a_share_is_never_told_as_nothing_when_there_is_something():
    shares = [formats.share(part, 10_000) for part in (0, 1, 10, 1234, 10_000)]
    assert shares == ["0 %", "< 0.1 %", "0.1 %", "12.3 %", "100.0 %"]
    assert formats.share(5, 0) == "0 %"
