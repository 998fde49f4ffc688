"""Who asks too often is told when to come again, and stands in nobody else's way."""

import re
import time
from functools import partial
from types import SimpleNamespace

import pytest
from sqlalchemy import event

from gramfuse_server.api import admission
from gramfuse_server.rates import Rate
from gramfuse_server.tables import TokenRow
from support.server_world import problem

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # rates, no queries

WRONG = f"gf_{'0' * 16}_{'0' * 64}"


@pytest.fixture
def seconds(monkeypatch):
    """The clock of all rates, which stands still until it is told."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(admission, "Rate", partial(Rate, monotonic=lambda: clock.now))
    return clock


def never():
    """A body that nobody reads."""
    message = "the body was read"
    raise AssertionError(message)
    yield b""


def test_a_token_that_asks_too_often_waits_as_long_as_it_is_told_and_no_other_does(make_world, seconds):
    world = make_world(requests_per_second=4)
    world.organization("acme")
    hasty, other = world.participant("acme"), world.coordinator("acme")
    assert [hasty.get("/v1/whoami").status_code for _ in range(80)] == [200] * 80
    refused = hasty.get("/v1/whoami")
    document = problem(refused, 429, "too-many-requests")
    assert document["retryable"]
    assert refused.headers["retry-after"] == str(document["facts"]["retry_after_seconds"]) == "1"
    assert other.get("/v1/whoami").status_code == 200
    seconds.now += 1
    assert [hasty.get("/v1/whoami").status_code for _ in range(5)] == [200, 200, 200, 200, 429]


def test_what_changes_something_counts_tenfold_and_parts_do_not(make_world, seconds):
    world = make_world(requests_per_second=2)
    world.organization("acme")
    member = world.participant("acme")
    path = f"/v1/projects/acme.tweets/contributions/{'0' * 64}"
    assert [member.post(f"{path}/withdraw").status_code for _ in range(5)] == [404, 404, 404, 404, 429]
    seconds.now += 5
    part = [member.put_part(f"{path}/files/weights.safetensors", 0, b"x").status_code for _ in range(11)]
    assert part == [404] * 10 + [429]


def test_of_a_part_that_has_to_wait_no_byte_is_read(make_world, seconds):
    world = make_world(requests_per_second=0.05)
    world.organization("acme")
    token = world.token("acme", "participant")
    assert world.participant("acme").get("/v1/whoami").status_code == 200
    path = f"/v1/projects/acme.tweets/contributions/{'0' * 64}/files/weights.safetensors/parts/0"
    headers = {"content-length": "1024", "content-digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"}
    assert world.raw_status("PUT", path, headers, token, never) == 429


def test_no_operation_reads_a_byte_of_a_body_of_who_has_no_token(world):
    operations = [
        (method.upper(), re.sub(r"\{[a-z_]+\}", "x", path))
        for path, methods in world.app.openapi()["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    ]
    assert len(operations) > 8
    headers = {"content-type": "application/json", "content-length": "20"}
    for method, path in operations:
        for token in (None, WRONG):
            assert world.raw_status(method, path, headers, token, never) in {401, 422}, (method, path)


def test_whatever_a_limit_is_an_honest_upload_at_full_speed_stays_below_it(world):
    project = world.project("acme", "globex")
    began = time.monotonic()
    for seed in range(12):
        world.contribute(project, "globex", seed=seed)
    assert time.monotonic() - began < 60  # and none of its requests was refused


def queries(world):
    """Counts what is asked of the database's tokens."""
    asked = []

    @event.listens_for(world.services.database.read, "before_cursor_execute")
    def count(_connection, _cursor, statement, *_):
        if TokenRow.__tablename__ in statement:
            asked.append(statement)

    return asked


def test_an_address_of_many_wrong_tokens_is_answered_without_a_look_and_who_works_there_goes_on(make_world, seconds):
    world = make_world(refusals_per_minute=5)
    world.organization("acme")
    working, fresh = world.participant("acme"), world.coordinator("acme")
    assert working.get("/v1/whoami").status_code == 200
    wrong = world.client(WRONG)
    for _ in range(5):
        problem(wrong.get("/v1/whoami"), 401, "unauthenticated")
    asked = queries(world)
    refused = wrong.get("/v1/whoami")
    problem(refused, 429, "too-many-requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 12
    problem(world.client().get("/v1/whoami"), 429, "too-many-requests")
    assert asked == []
    assert working.get("/v1/whoami").status_code == 200
    problem(fresh.get("/v1/whoami"), 429, "too-many-requests")  # right, but not known to be
    elsewhere = world.client(world.token("acme", "coordinator"), address="192.0.2.9")
    assert elsewhere.get("/v1/whoami").status_code == 200
    assert fresh.get("/v1/whoami").status_code == 200  # now it is
    assert world.client().get("/healthz").status_code == 200
    assert world.client().get("/v1/server").status_code == 200


def test_a_token_that_is_revoked_is_not_let_in_because_it_was_right_before(world):
    world.organization("acme")
    member = world.participant("acme")
    token = member.get("/v1/whoami").json()["token"]
    assert world.operator.post(f"/v1/tokens/{token}/revoke").status_code == 200
    problem(member.get("/v1/whoami"), 401, "unauthenticated")


def test_sign_ins_that_fail_count_as_wrong_tokens(make_world, seconds):
    world = make_world(refusals_per_minute=3)
    client = world.client()

    def sign_in():
        client.get("/dashboard/sign-in")
        form = {"csrf": client.cookies.get("gramfuse_form", ""), "token": WRONG}
        return client.post("/dashboard/sign-in", data=form)

    assert [sign_in().status_code for _ in range(4)] == [401, 401, 401, 429]
    assert client.get("/dashboard/sign-in").status_code == 200
    assert world.client(address="192.0.2.9").get("/dashboard/sign-in").status_code == 200


def test_limits_of_zero_are_none(make_world, seconds):
    world = make_world(requests_per_second=0, refusals_per_minute=0)
    world.organization("acme")
    wrong, member = world.client(WRONG), world.participant("acme")
    assert {wrong.get("/v1/whoami").status_code for _ in range(70)} == {401}
    assert {member.get("/v1/whoami").status_code for _ in range(70)} == {200}
