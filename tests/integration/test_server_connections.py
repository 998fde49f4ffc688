"""Bytes on a socket against the server as it is served: slow, endless, oversized. None is stored, nobody kept out."""

import contextlib
import json
import threading
from datetime import timedelta

import pytest

from gramfuse_server import connections
from gramfuse_shared import limits
from gramfuse_shared.digest import format_content_digest, sha256_hex
from support.served import everything_stored, head, serving
from support.server_world import make_contribution

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # sockets, no queries

SOON = timedelta(seconds=0.4)
FAR = 10**9


def begin(world, settings):
    """A project, and a contribution of which no part has arrived."""
    project = world.project("acme", "globex")
    for member in ("acme", "globex"):
        made = make_contribution(project, member)
        path = f"/v1/projects/acme.tweets/contributions/{made.id}"
        assert world.participant(member).put_document(path, made.manifest).status_code == 201


@pytest.fixture
def serve(keep, open_copies):
    """Serves a copy of the beginning, with settings of one's own."""
    with contextlib.ExitStack() as stack:

        def opened(**settings):
            world, _ = open_copies(keep(begin), **settings)
            stack.callback(world.services.database.close)
            return stack.enter_context(serving(world))

        yield opened


def part_of(world, organization):
    """Path, bytes and digest of a part that the server waits for, and its sender's token."""
    made = make_contribution(world.coordinator("acme").get("/v1/projects/acme.tweets").json(), organization)
    content = made.files["weights.safetensors"][:1024]
    path = f"/v1/projects/acme.tweets/contributions/{made.id}/files/weights.safetensors/parts/0"
    digest = format_content_digest(sha256_hex(content))
    return path, content, digest, world.token(organization, "participant")


def part_head(world, organization="globex", *, token=True, **changes):
    path, content, digest, own = part_of(world, organization)
    fields = {"content_length": len(content), "content_digest": digest} | changes
    return head("PUT", path, own if token else None, **{name: value for name, value in fields.items() if value})


@pytest.fixture(scope="module")
def oversized():
    """Requests that are too large somewhere or lie about their size: by name, what makes them and what is answered."""
    document = "/v1/projects/acme.tweets/contributions/" + "0" * 64

    def operator(world, path, **fields):
        return head("POST", path, world.token(None, "operator"), **fields)

    def member(world, **fields):
        return head("PUT", document, world.token("globex", "participant"), content_type="application/json", **fields)

    deep = b'{"role":' * 60_000
    gzip = {"content_encoding": "gzip"}
    return {
        "a header over the limit": (
            lambda _: head("GET", "/healthz", x="a" * limits.MAX_HEAD_BYTES),
            431,
            "head-too-large",
        ),
        "a path over the limit": (lambda _: head("GET", "/" + "a" * limits.MAX_HEAD_BYTES), 431, "head-too-large"),
        "more headers than the limit": (
            lambda _: head("GET", "/healthz", **{f"x{number}": "a" for number in range(limits.MAX_HEADERS)}),
            431,
            "head-too-large",
        ),
        "no HTTP": (lambda _: b"\x16\x03\x01 hello\r\n\r\n", 422, "request-malformed"),
        "two lengths": (lambda w: part_head(w, transfer_encoding="chunked"), 422, "request-malformed"),
        "a negative length": (lambda w: part_head(w, content_length=-5), 422, "request-malformed"),
        "a part that is longer than its slot": (lambda w: part_head(w, content_length=1025), 422, "part-out-of-range"),
        "a part that is longer than any": (lambda w: part_head(w, content_length=FAR), 413, "too-large"),
        "a part without a length": (
            lambda w: part_head(w, content_length=None, transfer_encoding="chunked") + b"400\r\n" + b"x" * 1024,
            411,
            "length-required",
        ),
        "a part of nobody": (lambda w: part_head(w, token=False), 401, "unauthenticated"),
        "a part that is compressed": (lambda w: part_head(w, **gzip) + bytes(1024), 415, "encoding-unsupported"),
        "a document that is compressed": (lambda w: member(w, content_length=20, **gzip), 415, "encoding-unsupported"),
        "a document over its limit": (lambda w: member(w, content_length=FAR), 413, "too-large"),
        "a document of nobody": (
            lambda _: head("PUT", document, content_type="application/json", content_length=FAR // 100),
            401,
            "unauthenticated",
        ),
        "an endless document": (
            lambda w: member(w, transfer_encoding="chunked") + b"1000000\r\n" + bytes(2**24) + b"\r\n1\r\n{\r\n",
            413,
            "too-large",
        ),
        "a small body over its limit": (
            lambda w: operator(w, "/v1/tokens", content_length=2**18 + 1),
            413,
            "too-large",
        ),
        "a small body of nobody": (lambda _: head("POST", "/v1/tokens", content_length=2**18), 401, "unauthenticated"),
        "a body that is too deep": (
            lambda w: (
                operator(w, "/v1/tokens", content_length=len(deep[:200_000]), content_type="application/json")
                + deep[:200_000]
            ),
            422,
            "request-malformed",
        ),
        "a document that is too deep": (
            lambda w: member(w, content_length=len(deep)) + deep,
            422,
            "document-malformed",
        ),
    }


def test_what_is_oversized_or_lies_about_its_size_is_a_problem_and_stores_nothing(serve, oversized):
    served = serve()
    part_head(served.world)  # makes the token
    served.world.token(None, "operator")
    before = everything_stored(served.world)
    for name, (request, status, code) in oversized.items():
        answer = served.ask(request(served.world))
        assert answer is not None, name
        assert (answer.status, answer.code) == (status, code), (name, answer)
        assert everything_stored(served.world) == before, name
    assert served.ask(head("GET", "/healthz")).status == 200


def test_a_part_that_ends_early_or_has_other_bytes_stores_nothing(serve):
    served = serve()
    _, content, _, _ = part_of(served.world, "globex")
    before = everything_stored(served.world)
    with served.connect() as connection:
        connection.send(part_head(served.world) + content[:-1])
    answer = served.ask(part_head(served.world) + content[:-1] + b"x")
    assert (answer.status, answer.code) == (422, "digest-mismatch")
    assert everything_stored(served.world) == before


def test_of_a_body_that_is_longer_than_announced_no_more_is_stored_than_was_announced(serve):
    served = serve()
    _, content, _, _ = part_of(served.world, "globex")
    before = served.world.stored_keys()
    with served.connect() as connection:
        connection.send(part_head(served.world) + content + b"and more than was announced")
        answer = connection.answer()
        assert answer.status == 201 or (answer.status, answer.code) == (422, "request-malformed")
        assert connection.is_closed(5)
    assert all(key.endswith(sha256_hex(content)) for key in served.world.stored_keys() - before)


def test_nobody_is_asked_for_a_body_who_has_no_token(serve):
    served = serve()
    refused = served.ask(part_head(served.world, token=False, expect="100-continue"))
    assert refused.status == 401
    path, content, digest, token = part_of(served.world, "globex")
    welcome = head("PUT", path, token, content_length=1024, content_digest=digest, expect="100-continue")
    with served.connect() as connection:
        connection.send(welcome)
        assert connection.answer().status == 100
        connection.send(content)
        assert connection.answer().status == 201


def test_a_head_without_an_end_is_read_to_the_limit_and_no_further(serve):
    served = serve()
    with served.connect() as connection:
        connection.send(b"GET /healthz HTTP/1.1\r\nx: ")
        sent = 0
        while connection.send(b"a" * 65536) and sent < 10**8:
            sent += 65536
        assert sent < 16 * 2**20  # what the sockets hold


def test_trailers_are_read_and_are_no_headers(serve):
    served = serve()
    body = json.dumps({"role": "operator"}).encode()
    token = served.world.token(None, "operator")
    request = head("POST", "/v1/tokens", token, content_type="application/json", transfer_encoding="chunked")
    chunked = request + b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    answer = served.ask(chunked + b"content-type: text/plain\r\n" * 3000 + b"\r\n")
    assert answer.status == 201


# --- slowly ----------------------------------------------------------------------------------------------------------


def test_a_head_that_does_not_come_in_time_is_given_up_the_first_and_the_next(serve):
    served = serve(head_timeout=SOON)
    request = head("GET", "/healthz", x="y" * 200)
    with served.connect() as connection:
        assert connection.drip(request, pause=0.02) < 3
        answer = connection.answer()
        assert (answer.status, answer.code) == (408, "too-slow")
        assert connection.is_closed(5)
    with served.connect() as connection:
        connection.send(request)
        assert connection.answer().status == 200
        assert not connection.is_closed(0.6)  # between two requests there is time
        assert connection.drip(request, pause=0.02) < 3
        assert connection.answer().status == 408


def test_a_connection_that_says_nothing_is_closed_without_a_word(serve):
    served = serve(head_timeout=SOON)
    with served.connect() as connection:
        assert connection.answer() is None


def test_a_body_that_does_not_come_in_time_is_given_up(serve):
    served = serve(body_timeout=SOON, part_timeout=SOON)
    token = served.world.token(None, "operator")
    before = everything_stored(served.world)
    for path in ("/v1/tokens", "/v1/projects/acme.tweets/contributions/" + "0" * 64):
        method = "POST" if path.endswith("tokens") else "PUT"
        with served.connect() as connection:
            connection.send(head(method, path, token, content_type="application/json", content_length=1000))
            connection.drip(b"{" * 900, pause=0.02)
            answer = connection.answer()
            assert (answer.status, answer.code) == (408, "too-slow")
            assert connection.is_closed(5)
    with served.connect() as connection:
        connection.send(part_head(served.world))
        connection.drip(bytes(1000), pause=0.02)
        assert connection.answer().code == "unavailable"
    assert everything_stored(served.world) == before


def test_what_follows_an_answer_is_thrown_away_for_a_while_and_then_the_connection_ends(serve, monkeypatch):
    monkeypatch.setattr(connections, "LINGER", SOON)
    served = serve()
    with served.connect() as connection:
        connection.send(part_head(served.world, token=False, content_length=2**24) + bytes(2**20))
        assert connection.answer().status == 401
        assert connection.is_closed(5)
    with served.connect() as connection:  # who sends the rest in time goes on with the same connection
        connection.send(part_head(served.world, token=False, content_length=2**20))
        assert connection.answer().status == 401
        connection.send(bytes(2**20) + head("GET", "/healthz"))
        assert connection.answer().status == 200


def test_who_does_not_read_its_answers_loses_the_connection(serve, monkeypatch):
    monkeypatch.setattr(connections, "READING", SOON)
    served = serve()
    with served.connect() as connection:
        connection.send(head("GET", "/openapi.json") * 400)
        assert wait_until(lambda: not served.server.server_state.connections)


def test_connections_that_ask_for_nothing_make_room_for_those_that_do(serve):
    served = serve(connections=10)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(served.connect()) for _ in range(40)]
        for connection in idle:
            connection.send(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(20):
            assert served.ask(head("GET", "/healthz")).status == 200
        assert len(served.server.server_state.connections) <= 10
        assert idle[0].is_closed(5)


def test_when_all_connections_are_at_work_the_next_is_told_to_come_again(serve):
    served = serve(connections=4)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(served.connect()).send(part_head(served.world) + bytes(100))
        assert wait_until(lambda: len(served.server.server_state.tasks) == 4)
        answer = served.ask(head("GET", "/healthz"))
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "unavailable", "1")
    assert wait_until(lambda: served.ask(head("GET", "/healthz")).status == 200)


def test_slow_parts_of_one_organization_leave_the_others_served(serve):
    served = serve(concurrent_parts=6, parts_per_organization=4)
    _, content, _, _ = part_of(served.world, "acme")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(served.connect()).send(part_head(served.world, "globex") + bytes(100))
        assert wait_until(lambda: len(served.server.server_state.tasks) == 40)
        answer = served.ask(part_head(served.world, "acme") + content)
        assert answer.status == 201


def test_an_organization_has_so_many_requests_under_way_and_the_others_have_theirs(serve):
    served = serve(concurrent_requests=5)
    _, content, _, token = part_of(served.world, "globex")
    own, other = head("GET", "/v1/whoami", token), head("GET", "/v1/whoami", part_of(served.world, "acme")[3])
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(served.connect()) for _ in range(5)]
        for connection in slow:
            connection.send(part_head(served.world) + content[:-1])
        assert wait_until(lambda: served.ask(own).status == 429)
        answer = served.ask(own)
        assert (answer.code, answer.headers["retry-after"]) == ("too-many-requests", "1")
        assert served.ask(other).status == 200
        for connection in slow:
            connection.send(content[-1:])
        assert sorted(connection.answer().status for connection in slow) == [200, 200, 200, 200, 201]
        assert served.ask(own).status == 200


def wait_until(condition, seconds=10.0):
    """Wait until something holds; False where it does not in time."""
    waiting = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        waiting.wait(0.02)
    return False
