"""Every request's line in the log: its id, its route, how it ended; and nothing that its caller keeps to itself."""

import logging

import pytest

from support.log_lines import logs, parsed
from support.server_world import make_contribution


@pytest.fixture
def send(world):
    """Sends a request; returns its answer and its line, with all that was logged in the same request."""

    def one(method, path, *, client=None, **options):
        with logs() as written:
            answer = (client or world.client()).request(method, path, **options)
        lines = [line for line in parsed(written.getvalue()) if line["logger"] != "httpx"]  # that is the client's
        *within, line = lines
        assert line["event"] == "request"
        assert {other.get("request_id") for other in within} <= {line["request_id"]}
        return answer, line, lines

    return one


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/v1/server", "/v1/server", 200),
        ("GET", "/v1/projects/acme.tweets", "/v1/projects/{project}", 401),
        ("GET", "/v1/projects/acme.tweets/jobs/x", "/v1/projects/{project}/jobs/{job}", 401),
        ("DELETE", "/healthz", "/healthz", 405),
        ("GET", "/nowhere", "unmatched", 404),
        ("GET", "/dashboard/sign-in", "/dashboard/sign-in", 200),
    ],
)
def test_every_request_has_a_line_with_its_id_and_route(send, method, path, route, status):
    answer, line, _ = send(method, path)
    assert answer.status_code == line["status"] == status
    assert (line["method"], line["path"], line["route"]) == (method, path, route)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["milliseconds"] >= 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_what_probes_ask_every_few_seconds_fills_no_log_while_all_is_well(world, path):
    with logs() as written:
        assert world.client().get(path).status_code == 200
    assert [line for line in parsed(written.getvalue()) if line["event"] == "request"] == []
    with logs(level="debug") as written:
        assert world.client().get(path).status_code == 200
    (line,) = [line for line in parsed(written.getvalue()) if line["event"] == "request"]
    assert (line["level"], line["path"], line["status"]) == ("debug", path, 200)


def test_a_probe_that_finds_something_wrong_is_logged(world, send, monkeypatch):
    def away(*_, **__):
        raise OSError("gone")

    monkeypatch.setattr(type(world.services.blobs), "probe", away)
    answer, line, _ = send("GET", "/readyz")
    assert answer.status_code == line["status"] == 503


def test_a_callers_id_is_kept_and_one_of_another_form_is_not(send):
    _, line, _ = send("GET", "/v1/server", headers={"x-request-id": "push-17.a_b"})
    assert line["request_id"] == "push-17.a_b"
    for forged in ("a b", "x" * 65, 'a"b', ""):
        answer, line, _ = send("GET", "/v1/server", headers={"x-request-id": forged})
        assert line["request_id"] == answer.headers["x-request-id"] != forged


def test_neither_token_nor_query_nor_body_is_logged(world, send):
    project = world.project("acme")
    contribution = make_contribution(project, "acme")
    token = world.token("acme", "participant")
    path = f"/v1/projects/acme.tweets/contributions/{contribution.id}"
    _, _, written = send("GET", "/v1/projects?cursor=hidden-cursor", client=world.client(token))
    answer, line, more = send("PUT", path, client=world.client(token), content=contribution.manifest.model_dump_json())
    assert answer.status_code in {200, 201, 422}
    assert line["route"] == "/v1/projects/{project}/contributions/{contribution}"
    for hidden in (token, token.split("_")[2], "hidden-cursor", "encoder.query.weight"):
        assert hidden not in str(written + more)


def test_what_crashes_is_logged_with_the_requests_id_and_without_its_variables(world, send, monkeypatch):
    def crash(*_):
        secret_of_the_callee = "hunter2"  # noqa: F841 - a traceback with variables would show it
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(world.services.blobs), "probe", crash)
    answer, line, written = send("GET", "/readyz")
    assert answer.status_code == line["status"] == 500
    failure, _ = written
    assert failure["event"] == "request failed"
    assert "a bug" in failure["exception"]
    assert "hunter2" not in failure["exception"]


def test_the_suites_own_logging_is_as_before():
    before = logging.getLogger().handlers
    with logs():
        assert logging.getLogger().handlers != before
    assert logging.getLogger().handlers == before
