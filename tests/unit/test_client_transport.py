"""One connection: which failures are tried again, which class a problem becomes, and what never leaves the process."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from gramfuse.config import Endpoint, Token
from gramfuse.transfer.events import Event, parse_events
from gramfuse.transfer.retrying import RetryRule
from gramfuse.transfer.transport import Transport
from gramfuse_shared import errors
from gramfuse_shared.digest import format_content_digest, sha256_hex

SECRET = "gf_ab12_" + "s3cret" * 8


def transport_to(
    answer: Callable[[httpx.Request], httpx.Response],
    pauses: list[float] | None = None,
    *,
    through_server: bool = True,
    **rule,
) -> Transport:
    return Transport(
        Endpoint("https://merge.example.org", Token(SECRET), allow_http=False, through_server=through_server),
        connection=httpx.MockTransport(answer),
        retry=RetryRule(**rule),
        sleep=(pauses if pauses is not None else []).append,
        jitter=lambda: 1.0,
    )


def problem(code: str, status: int, *, retryable: bool = False, headers=None, **facts) -> httpx.Response:
    body = {
        "type": "about:blank",
        "title": "t",
        "status": status,
        "detail": "it is so",
        "code": code,
        "retryable": retryable,
        "facts": facts,
    }
    return httpx.Response(status, json=body, headers={"Content-Type": "application/problem+json", **(headers or {})})


class Server:
    """Answers one response after the other; the last one for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("not-found", 404, errors.NotFoundError),
        ("policy-violation", 422, errors.PolicyViolationError),
        ("unauthenticated", 401, errors.UnauthenticatedError),
        ("parts-missing", 409, errors.PartsMissingError),
    ],
)
def test_a_problem_document_becomes_the_class_of_its_code_and_keeps_its_facts(code, status, kind):
    server = Server(problem(code, status, tensor="a.weight"))
    with pytest.raises(kind, match="it is so") as caught:
        transport_to(server).call("GET", "v1/x")
    assert caught.value.facts["tensor"] == "a.weight"
    assert len(server.requests) == 1


def test_a_code_of_a_newer_server_is_the_base_class_and_is_named_in_the_facts():
    with pytest.raises(errors.GramfuseError, match="it is so") as caught:
        transport_to(Server(problem("from-the-future", 409))).call("GET", "v1/x")
    assert type(caught.value) is errors.GramfuseError
    assert caught.value.facts["code"] == "from-the-future"


def test_a_broken_connection_is_tried_again_with_doubling_pauses():
    pauses: list[float] = []
    server = Server(httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.Response(200, content=b"{}"))
    assert transport_to(server, pauses, first_delay=0.5).call("PUT", "v1/x", json={}) == b"{}"
    assert pauses == [0.5, 1.0]


def test_pauses_are_bounded_and_jittered():
    rule = RetryRule(first_delay=0.25, longest_delay=8)
    assert rule.delay(50, jitter=1.0) == 8
    assert rule.delay(3, jitter=0.5) == 0.5


def test_after_all_attempts_the_failure_is_a_transport_error_that_says_what_happened():
    server = Server(httpx.ConnectError("connection refused"))
    with pytest.raises(errors.TransportError, match="connection refused"):
        transport_to(server, attempts=3).call("GET", "v1/x")
    assert len(server.requests) == 3


def test_what_the_server_calls_retryable_is_tried_again_and_what_it_does_not_is_not():
    busy = Server(problem("unavailable", 503, retryable=True), httpx.Response(200, content=b"1"))
    assert transport_to(busy).call("GET", "v1/x") == b"1"
    fault = Server(problem("internal-error", 500))
    with pytest.raises(errors.GramfuseError):
        transport_to(fault).call("GET", "v1/x")
    assert len(fault.requests) == 1


def test_the_pause_is_at_least_what_the_server_asks_for():
    pauses: list[float] = []
    crowded = problem("too-many-requests", 429, retryable=True, headers={"Retry-After": "9"})
    busy = problem("unavailable", 503, retryable=True, headers={"Retry-After": "7"})
    transport_to(Server(busy, crowded, httpx.Response(200)), pauses).call("GET", "v1/x")
    assert pauses == [7.0, 9.0]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateways_answer_without_a_problem_document_is_tried_again(status):
    server = Server(httpx.Response(status, text="<html>"), httpx.Response(200, content=b"1"))
    assert transport_to(server).call("GET", "v1/x") == b"1"


def test_an_answer_that_is_no_gramfuse_servers_is_not_tried_again():
    server = Server(httpx.Response(404, text="<html>nginx</html>"))
    with pytest.raises(errors.TransportError, match="not the answer of a gramfuse server"):
        transport_to(server).call("GET", "v1/x")
    assert len(server.requests) == 1


def test_redirects_are_not_followed_so_the_token_goes_nowhere_else():
    server = Server(httpx.Response(307, headers={"Location": "https://evil.example.org/"}))
    with pytest.raises(errors.TransportError):
        transport_to(server).call("GET", "v1/x")
    assert [request.url.host for request in server.requests] == ["merge.example.org"]


def test_a_request_names_the_client_and_carries_the_token():
    server = Server(httpx.Response(200))
    transport_to(server).call("GET", "v1/x", query={"limit": 3, "cursor": None})
    request = server.requests[0]
    assert request.headers["User-Agent"].startswith("gramfuse/")
    assert request.headers["Authorization"] == f"Bearer {SECRET}"
    assert str(request.url) == "https://merge.example.org/v1/x?limit=3"


def test_the_token_appears_in_no_error_and_no_repr():
    transport = transport_to(Server(httpx.ConnectError("refused")), attempts=1)
    with pytest.raises(errors.TransportError) as caught:
        transport.call("GET", "v1/x")
    shown = f"{caught.value!r} {caught.value.facts} {transport.endpoint!r} {Token(SECRET)} {[Token(SECRET)]}"
    assert "s3cret" not in shown
    assert "gf_ab12_…" in shown


# --- uploads and downloads -------------------------------------------------------------------------------------------


def test_an_upload_announces_length_and_digest_and_is_sent_whole_in_each_attempt():
    server = Server(
        httpx.WriteError("broken pipe"), problem("digest-mismatch", 422, retryable=True), httpx.Response(201)
    )

    def chunks() -> Iterator[bytes]:
        yield b"ab"
        yield b"cd"

    transport_to(server).upload("v1/parts/0", chunks, length=4, digest=sha256_hex(b"abcd"))
    assert [request.content for request in server.requests] == [b"abcd"] * 3
    for request in server.requests:
        assert request.headers["Content-Length"] == "4"
        assert "Transfer-Encoding" not in request.headers
        assert request.headers["Content-Digest"] == format_content_digest(sha256_hex(b"abcd"))


def test_a_download_asks_for_the_rest_of_the_same_version():
    server = Server(httpx.Response(206, stream=httpx.ByteStream(b"cd"), headers={"Content-Range": "bytes 2-3/4"}))
    with transport_to(server).download("v1/f", start=2, etag="ab" * 32) as download:
        assert (download.start, b"".join(download.chunks)) == (2, b"cd")
    assert server.requests[0].headers["Range"] == "bytes=2-"
    assert server.requests[0].headers["If-Range"] == f'"{"ab" * 32}"'


def test_a_download_of_another_version_begins_anew():
    with transport_to(Server(httpx.Response(200, stream=httpx.ByteStream(b"abcd")))).download(
        "v1/f", start=2, etag="x"
    ) as download:
        assert (download.start, b"".join(download.chunks)) == (0, b"abcd")


def test_a_range_that_was_not_asked_for_is_refused():
    server = Server(httpx.Response(206, content=b"bcd", headers={"Content-Range": "bytes 1-3/4"}))
    with pytest.raises(errors.TransportError, match="Content-Range"), transport_to(server).download("v1/f", start=2):
        pass


def test_a_server_that_is_not_there_is_named_by_its_address():
    endpoint = Endpoint("http://127.0.0.1:9", Token("gf_a_b"), allow_http=False)
    transport = Transport(endpoint, retry=RetryRule(attempts=1))
    with pytest.raises(errors.TransportError, match=r"the server at http://127\.0\.0\.1:9 could not be reached: "):
        transport.call("GET", "v1/server")


def test_a_server_that_speaks_no_tls_is_told_in_words():
    with socketserver.TCPServer(("127.0.0.1", 0), PlainAnswer) as plain:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        address = f"https://127.0.0.1:{plain.server_address[1]}"
        transport = Transport(Endpoint(address, Token("gf_a_b"), allow_http=False))
        with pytest.raises(errors.TransportError, match="speaks no TLS there: is it http://") as told:
            transport.call("GET", "v1/server")
        plain.shutdown()
    assert told.value.facts["retryable"] is False


class PlainAnswer(socketserver.BaseRequestHandler):
    """Answers whatever it hears as an HTTP server without TLS does."""

    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_are_read_across_comments_and_several_data_lines():
    lines = [": keep-alive", "", "event: job", "data: {", "data: }", "id: 4", "", "data: plain", "", "event: cut off"]
    assert list(parse_events(iter(lines))) == [
        Event("comment", "keep-alive"),
        Event("job", "{\n}"),
        Event("message", "plain"),
    ]


def test_events_come_from_a_stream():
    body = "event: job\ndata: {}\n\n: ping\n\nevent: job\ndata: []\n\n"
    server = Server(httpx.Response(200, text=body, headers={"Content-Type": "text/event-stream"}))
    assert [event.text for event in transport_to(server).events("v1/e")] == ["{}", "ping", "[]"]


def test_json_bodies_are_json():
    server = Server(httpx.Response(200))
    transport_to(server).call("PUT", "v1/x", json={"a": [1, None]})
    assert json.loads(server.requests[0].content) == {"a": [1, None]}


def test_certificates_that_cannot_be_read_are_told_by_their_variable(monkeypatch, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    for named in ("missing.pem", "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / named))
        with pytest.raises(errors.ConfigurationError, match="SSL_CERT_FILE"):
            Transport(Endpoint("https://merge.example.org", None, False))
