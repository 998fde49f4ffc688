"""What a client does with an address of the server's store: to whom it speaks, what it never says, when it gives up."""

import base64
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import pytest

from gramfuse.config import Endpoint, Home, Token
from gramfuse.transfer.retrying import RetryRule
from gramfuse.transfer.transport import Transport
from gramfuse_shared.contract.http_api import LOCATION_TYPE, AnnouncedPart, DirectRequest
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import CancelledError, DigestMismatchError, DocumentMalformedError, TransportError

SERVER = "https://merge.example.org"
STORE = "https://store.example.net"
SIGNED = "X-Amz-Expires=600&X-Amz-Signature=5ec2e7"
CONTENT = b"weights"
PART = "v1/c/files/f/parts/0"


class Peer:
    """A server and its store in one; the store's answers come one after the other, then it takes everything."""

    def __init__(self, *answers: httpx.Response | Exception, store: str = STORE) -> None:
        self.requests: list[httpx.Request] = []
        self.answers = list(answers)
        self.store = store
        self.held: bytes | None = None
        self.addresses = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        self.requests.append(request)
        if request.url.path == "/v1/server":
            info = {"version": "0", "receipt_key": base64.b64encode(bytes(32)).decode(), "direct_transfers": True}
            return httpx.Response(200, json=info)
        if request.url.host == "merge.example.org":
            return self._api(request)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        if request.method == "PUT":
            self.held = body
            return httpx.Response(200)
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        headers = {"content-range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
        return httpx.Response(206 if start else 200, headers=headers, stream=httpx.ByteStream(CONTENT[start:]))

    def _api(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and LOCATION_TYPE in request.headers["accept"]:
            place = {"bytes": len(CONTENT), "sha256": sha256_hex(CONTENT), "get": self._address({})}
            return httpx.Response(200, json=place, headers={"content-type": LOCATION_TYPE})
        if request.method == "GET":
            return httpx.Response(200, stream=httpx.ByteStream(CONTENT))
        if request.method == "PUT":
            return httpx.Response(201, json={})
        document = {"number": 0, "bytes": len(CONTENT), "sha256": sha256_hex(CONTENT)}
        if self.held == CONTENT:
            return httpx.Response(201, json=document)
        return httpx.Response(
            202, json=document | {"put": self._address({"if-none-match": "*", "content-length": "7"})}
        )

    def _address(self, headers: dict[str, str]) -> dict[str, object]:
        self.addresses += 1
        url = f"{self.store}/bucket/key-{self.addresses}?{SIGNED}"
        return {"url": url, "headers": headers, "expires_at": datetime.now(UTC).isoformat()}

    def of_store(self) -> list[httpx.Request]:
        return [request for request in self.requests if request.url.path.startswith("/bucket/")]

    def sent(self) -> list[tuple[str, str]]:
        return [(request.method, request.url.host) for request in self.requests]


def transport_to(peer: Callable[[httpx.Request], httpx.Response], *, url: str = SERVER, **options) -> Transport:
    attempts, allow = options.pop("attempts", 3), options.pop("allow_http", False)
    return Transport(
        Endpoint(url, Token("gf_ab12_s3cret"), allow_http=allow, **options),
        connection=httpx.MockTransport(peer),
        retry=RetryRule(attempts=attempts),
        sleep=lambda _: None,
    )


def chunks() -> Iterator[bytes]:
    yield CONTENT[:3]
    yield CONTENT[3:]


def upload(transport: Transport, content: Callable[[], Iterator[bytes]] = chunks) -> None:
    transport.upload(PART, content, length=len(CONTENT), digest=sha256_hex(CONTENT))


def download(transport: Transport, start: int = 0) -> tuple[int, bytes]:
    with transport.download("v1/f", start=start, etag=sha256_hex(CONTENT)) as arriving:
        return arriving.start, b"".join(arriving.chunks)


def test_the_store_is_told_what_was_signed_and_never_the_token():
    peer = Peer()
    transport = transport_to(peer)
    upload(transport)
    assert download(transport, 3) == (3, CONTENT[3:])
    put, get = peer.of_store()
    assert (put.content, put.headers["content-length"], put.headers["if-none-match"]) == (CONTENT, "7", "*")
    assert get.headers["range"] == "bytes=3-"
    for request in peer.of_store():
        assert "authorization" not in request.headers
        assert "s3cret" not in str(request.headers)
    assert [request.method for request in peer.requests] == ["GET", "POST", "PUT", "POST", "GET", "GET"]


@pytest.mark.parametrize(
    ("server", "store"),
    [
        (SERVER, "http://store.example.net"),
        (SERVER, "http://127.0.0.1:9000"),  # a server elsewhere has nothing to say about this machine's ports
        (SERVER, "https://localhost:9000"),
        (SERVER, "ftp://store.example.net"),
        (SERVER, "file:///etc/passwd"),
    ],
)
def test_an_address_in_the_clear_or_of_this_machine_is_not_used(server, store, caplog):
    peer = Peer(store=store)
    transport = transport_to(peer, url=server)
    upload(transport)
    assert download(transport) == (0, CONTENT)
    assert peer.of_store() == []
    assert peer.sent()[-2:] == [("PUT", "merge.example.org"), ("GET", "merge.example.org")]
    (said,) = caplog.messages
    assert "https://" in said
    assert "Signature" not in said


def test_http_serves_where_it_was_allowed():
    peer = Peer(store="http://store.example.net")
    upload(transport_to(peer, allow_http=True))
    assert len(peer.of_store()) == 1


def test_a_store_that_cannot_be_reached_is_left_alone_for_good(caplog):
    peer = Peer(httpx.ConnectTimeout("timed out"))
    transport = transport_to(peer)
    for _ in range(2):
        upload(transport)
        assert download(transport) == (0, CONTENT)
    assert len(peer.of_store()) == 1
    (said,) = caplog.messages
    assert said.startswith(
        "the server's object store at store.example.net cannot be reached from here: timed out; bytes"
    )
    assert said.endswith("go through the server instead (GRAMFUSE_THROUGH_SERVER=1 says so beforehand)")


def test_a_store_that_was_reached_before_is_asked_again():
    peer = Peer()
    transport = transport_to(peer)
    upload(transport)
    peer.held, peer.answers = None, [httpx.ConnectError("refused"), httpx.ReadError("reset")]
    upload(transport)
    assert [request.method for request in peer.of_store()] == ["PUT"] * 4
    peer.answers = [httpx.ConnectError("refused")] * 3
    peer.held = None
    with pytest.raises(TransportError, match=r"object store at store\.example\.net could not be reached: refused"):
        upload(transport)


@pytest.mark.parametrize("refusal", [httpx.Response(403), httpx.Response(400, text="<Code>ExpiredToken</Code>")])
def test_an_address_that_came_too_late_is_asked_for_again(refusal):
    peer = Peer(refusal)
    upload(transport_to(peer))
    assert [request.url.path for request in peer.of_store()] == ["/bucket/key-1", "/bucket/key-2"]


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_a_busy_store_is_asked_again(status):
    peer = Peer(httpx.Response(status))
    upload(transport_to(peer))
    assert len(peer.of_store()) == 2


def test_what_a_store_refuses_for_good_is_told_by_its_host_and_code_and_no_address():
    refusal = httpx.Response(404, text="<Error><Code>NoSuchBucket</Code><Resource>x</Resource></Error>")
    with pytest.raises(TransportError) as caught:
        upload(transport_to(Peer(refusal)))
    assert str(caught.value) == "the server's object store at store.example.net answered HTTP 404 (NoSuchBucket)"


def test_bytes_that_lie_there_already_are_the_servers_to_look_at():
    peer = Peer(httpx.Response(412))
    peer.held = None
    transport = transport_to(peer, attempts=1)
    with pytest.raises(DigestMismatchError, match="does not hold the bytes"):
        upload(transport)
    peer.held = CONTENT
    upload(transport)
    assert len(peer.of_store()) == 1


def test_damaged_bytes_are_sent_again_and_then_told():
    damaged = httpx.Response(400, text="<Error><Code>BadDigest</Code></Error>")
    peer = Peer(damaged)
    upload(transport_to(peer))
    assert len(peer.of_store()) == 2
    with pytest.raises(DigestMismatchError, match="not those that were announced"):
        upload(transport_to(Peer(damaged, damaged, damaged)))


@pytest.mark.parametrize("status", [301, 307])
def test_a_store_that_sends_elsewhere_is_not_followed(status):
    peer = Peer(httpx.Response(status, headers={"location": "https://evil.example.org/"}))
    with pytest.raises(TransportError, match=f"HTTP {status}"):
        upload(transport_to(peer))
    assert {request.url.host for request in peer.requests} == {"merge.example.org", "store.example.net"}


def test_a_download_of_another_version_begins_anew():
    with transport_to(Peer()).download("v1/f", start=3, etag="0" * 64) as arriving:
        assert (arriving.start, b"".join(arriving.chunks)) == (0, CONTENT)


def test_who_says_so_beforehand_never_asks_for_an_address(monkeypatch, tmp_path):
    endpoint = Home(tmp_path).endpoint(SERVER, "gf_ab12_s3cret", environment={"GRAMFUSE_THROUGH_SERVER": "1"})
    peer = Peer()
    transport = Transport(endpoint, connection=httpx.MockTransport(peer))
    upload(transport)
    assert download(transport) == (0, CONTENT)
    assert peer.sent() == [("PUT", "merge.example.org"), ("GET", "merge.example.org")]


def test_a_stopped_transfer_ends_at_its_next_chunk():
    peer = Peer()
    transport = transport_to(peer)

    def stopping() -> Iterator[bytes]:
        yield CONTENT[:3]
        transport.stop()
        transport.require_running()

    with pytest.raises(CancelledError):
        upload(transport, stopping)
    assert peer.held is None


def test_several_parts_at_once_ask_the_server_once_whether_it_offers_its_store():
    peer = Peer()
    transport = transport_to(peer)
    threads = [threading.Thread(target=upload, args=(transport,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [request.url.path for request in peer.requests].count("/v1/server") == 1


def test_no_log_no_repr_and_no_error_shows_an_address(caplog):
    caplog.set_level(logging.DEBUG, logger="httpx")
    caplog.set_level(logging.DEBUG)
    transport = transport_to(Peer(httpx.Response(500)))
    upload(transport)
    download(transport)
    assert f"{STORE}/bucket/key-1?***" in caplog.text
    assert "Signature" not in caplog.text
    place = {"url": f"{STORE}/k?{SIGNED}", "headers": {}, "expires_at": "2026-01-01T00:00:00Z"}
    request = DirectRequest.model_validate(place)
    assert "Signature" not in f"{request!r} {request} {request.url}"
    assert request.model_dump(mode="json")["url"] == place["url"]
    part = {"number": 0, "bytes": 1, "sha256": "0" * 64}
    for malformed in (place | {"headers": {"authorization": "mine"}}, {"url": place["url"]}):
        with pytest.raises(DocumentMalformedError) as caught:
            AnnouncedPart.parse(httpx.Response(200, json=part | {"put": malformed}).content)
        assert "Signature" not in f"{caught.value} {caught.value.__cause__}"
