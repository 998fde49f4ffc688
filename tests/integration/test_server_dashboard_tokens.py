"""Tokens on the dashboard: listed, created and shown once, revoked; by nobody else's form."""

import re

import pytest

from support.browsing import csrf_of, require_well_made, sign_in
from support.server_world import problem

TOKENS = "/dashboard/tokens"


@pytest.fixture
def browser(world):
    world.organization("acme")
    return sign_in(world)[0]


def create(browser, **changes):
    form = {"csrf": csrf_of(browser.get(TOKENS)), "role": "participant", "organization": "acme", "days": "7"}
    return browser.post(TOKENS, data=form | changes)


def test_a_token_is_created_shown_once_and_works(world, browser):
    made = create(browser)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    token = re.search(r">(gf_[0-9a-f]{16}_[0-9a-f]{64})<", made.text)[1]
    who = world.client(token).get("/v1/whoami").json()
    assert (who["organization"], who["role"]) == ("acme", "participant")
    page = browser.get(TOKENS)
    require_well_made(page)
    identifier, secret = token.split("_")[1:]
    assert identifier in page.text
    assert secret not in page.text
    entry = world.operator.get("/v1/admin/audit-log?action=token.create&subject=" + identifier).json()["items"][0]
    assert entry["details"] == {"role": "participant", "organization": "acme", "days": 7}
    assert entry["token"] == world.token(None, "operator").split("_")[1]


def test_a_token_is_revoked_after_a_question(world, browser):
    token = re.search(r">(gf_[0-9a-f]+_[0-9a-f]+)<", create(browser).text)[1]
    asked = browser.get(f"{TOKENS}/{token.split('_')[1]}/revoke")
    require_well_made(asked)
    assert world.client(token).get("/v1/whoami").status_code == 200
    done = browser.post(f"{TOKENS}/{token.split('_')[1]}/revoke", data={"csrf": csrf_of(asked)})
    assert (done.status_code, done.headers["location"]) == (303, "../../tokens")
    problem(world.client(token).get("/v1/whoami"), 401, "unauthenticated")
    assert 'state revoked">revoked' in browser.get(TOKENS).text


def test_who_revokes_the_sessions_own_token_is_told_before_and_signed_out(world, browser):
    own = world.token(None, "operator").split("_")[1]
    asked = browser.get(f"{TOKENS}/{own}/revoke")
    assert "you will be signed out" in asked.text
    browser.post(f"{TOKENS}/{own}/revoke", data={"csrf": csrf_of(asked)})
    assert browser.get(TOKENS).headers["location"] == "sign-in"


@pytest.mark.parametrize("csrf", ["", "0" * 64])
def test_a_form_from_elsewhere_creates_and_revokes_nothing(world, browser, csrf):
    before = world.operator.get("/v1/tokens").json()
    assert create(browser, csrf=csrf).status_code == 403
    own = world.token(None, "operator").split("_")[1]
    assert browser.post(f"{TOKENS}/{own}/revoke", data={"csrf": csrf}).status_code == 403
    assert world.operator.get("/v1/tokens").json() == before


def test_without_a_session_no_form_is_taken(world):
    browser = world.client()
    for path in (TOKENS, f"{TOKENS}/{'0' * 16}/revoke"):
        answer = browser.post(path, data={"csrf": "0" * 64, "role": "operator", "days": "1"})
        assert answer.status_code == 303
        assert answer.headers["location"].endswith("sign-in")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"role": "emperor"}, 422),
        ({"organization": ""}, 422),
        ({"role": "operator"}, 422),
        ({"days": "0"}, 422),
        ({"days": "1e9"}, 422),
        ({"organization": "<script>"}, 422),
        ({"organization": "nobody"}, 404),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(world, browser, changes, status):
    before = world.operator.get("/v1/tokens").json()
    answer = create(browser, **changes)
    assert answer.status_code == status
    assert "<script>" not in answer.text
    assert world.operator.get("/v1/tokens").json() == before
    assert 'role="alert" class="alert">' in answer.text


def test_what_a_form_said_stands_in_it_again_with_what_is_wrong(world, browser):
    answer = create(browser, role="coordinator", organization="", days="33")
    assert "choose the organization that the coordinator&#39;s token is for" in answer.text
    assert "<option selected>coordinator</option>" in answer.text
    assert 'name="days" value="33"' in answer.text
    answer = create(browser, days="0")
    assert "days must be at least 1" in answer.text
    assert "<option selected>acme</option>" in answer.text


def test_the_form_as_it_comes_makes_no_token_and_says_what_is_to_be_chosen(world, browser):
    page = browser.get(TOKENS).text
    roles, organizations = re.findall(r"<select[^>]*>(.*?)</select>", page, re.DOTALL)
    assert re.findall(r">(\w+)</option>", roles) == ["participant", "coordinator", "operator"]
    assert "selected" not in page
    assert organizations.startswith('<option value="">none')
    before = world.operator.get("/v1/tokens").json()
    answer = create(browser, organization="", days="90")
    assert (answer.status_code, "choose the organization that the participant&#39;s token is for" in answer.text) == (
        422,
        True,
    )
    assert world.operator.get("/v1/tokens").json() == before


def test_an_operators_token_is_created_for_no_organization(world, browser):
    token = re.search(r">(gf_[0-9a-f]+_[0-9a-f]+)<", create(browser, role="operator", organization="").text)[1]
    assert world.client(token).get("/v1/whoami").json()["role"] == "operator"


@pytest.mark.parametrize("token", ["0" * 16, "nonsense", "%00"])
def test_a_token_that_is_not_there_is_told_so(browser, token):
    assert browser.get(f"{TOKENS}/{token}/revoke").status_code == 404
    assert browser.post(f"{TOKENS}/{token}/revoke", data={"csrf": csrf_of(browser.get(TOKENS))}).status_code == 404
