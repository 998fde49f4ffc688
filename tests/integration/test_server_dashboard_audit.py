"""The audit log searched, on the dashboard's page and as JSON."""

import re

import pytest

from gramfuse_server import audit_log
from gramfuse_server.dashboard import sources
from gramfuse_server.database import transaction
from support.browsing import links_of, require_well_made, sign_in
from support.server_world import problem

ROWS = [
    ("acme", "a1", "token.create", "100%_sure"),
    ("globex", "b2", "token.revoke", "acme.tweets"),
    (None, "c3", "token.create", "Acme.Other"),
    (None, None, "model.publish", "acme.tweets/first"),
    ("operator", "d4", "file.download", "globex.tweets"),
]


@pytest.fixture
def written(world):
    """A world whose audit log ends with ROWS."""
    with transaction(world.services.database) as session:
        for organization, token, action, subject in ROWS:
            at = world.clock()
            audit_log.append(session, at=at, organization=organization, token=token, action=action, subject=subject)
    return world


def json_rows(world, **asked):
    answer = world.operator.get("/v1/admin/audit-log", params=asked)
    assert answer.status_code == 200, answer.text
    return [entry["sequence"] for entry in answer.json()["items"]]


def page_rows(page):
    assert page.status_code == 200, page.text
    return [int(found) for found in re.findall(r'title="digest [0-9a-f]{64}">(\d+)</td>', page.text)]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"action": "token."}, [2, 1, 0]),
        ({"action": "TOKEN.create"}, [2, 0]),
        ({"action": "token.create", "subject": "acme"}, [2]),
        ({"subject": "acme."}, [3, 2, 1]),
        ({"subject": "%"}, [0]),
        ({"subject": "0%_s"}, [0]),
        ({"subject": "_"}, [0]),
        ({"actor": "acme"}, [0]),
        ({"actor": "b2"}, [1]),
        ({"actor": "server"}, [3]),
        ({"actor": "operator", "subject": "globex."}, [4]),
        ({"actor": "operator", "action": "token."}, [2]),
        ({"actor": "ac"}, []),
        ({"subject": "' OR 1=1--".replace(" ", "")}, []),
    ],
)
def test_rows_are_found_by_action_subject_and_actor(written, asked, found):
    browser, _ = sign_in(written)
    first = json_rows(written, subject="100%_sure")[0]
    assert [sequence - first for sequence in json_rows(written, **asked)] == found
    assert [sequence - first for sequence in page_rows(browser.get("/dashboard/audit", params=asked))] == found


def test_a_search_goes_on_where_it_is_long(written, monkeypatch):
    monkeypatch.setattr(sources, "ROWS", 1)
    browser, _ = sign_in(written)
    path, seen = "/dashboard/audit?action=token.&subject=&actor=", []
    while path:
        page = browser.get(path)
        require_well_made(page)
        seen += page_rows(page)
        assert len(seen) < 9
        path = next((link for link in links_of(page) if "cursor=" in link), None)
    assert seen == json_rows(written, action="token.")


def test_what_cannot_be_searched_for_is_told_so(written):
    browser, _ = sign_in(written)
    for value in ("a b", "\x00", "é", "x" * 129):
        page = browser.get("/dashboard/audit", params={"subject": value, "action": "token"})
        assert 'role="alert" class="alert">subject: at most 128 printable' in page.text
        assert ('name="action" value="token"' in page.text, "<tbody>" in page.text) == (True, False)
        problem(written.operator.get("/v1/admin/audit-log", params={"subject": value}), 422, "request-malformed")
    assert browser.get("/dashboard/audit", params={"action": "  "}).status_code == 200
    assert "No row is like that." in browser.get("/dashboard/audit", params={"action": "nothing"}).text


def test_what_was_searched_for_and_what_rows_say_is_escaped(written):
    hostile = '"><script>alert(1)</script>'
    with transaction(written.services.database) as session:
        audit_log.append(
            session, at=written.clock(), organization=None, token=None, action=hostile, subject=hostile,
            details={hostile: [hostile, 1], "plain": hostile},
        )  # fmt: skip
    page = sign_in(written)[0].get("/dashboard/audit", params={"subject": hostile})
    assert len(page_rows(page)) == 1
    assert page.text.count("<script") == 2
    assert page.text.count("&lt;script&gt;alert(1)") >= 5
