"""Parts and files that pass the client and an S3 store alone: what is handed out, what counts, and what never leaks.

The store is SeaweedFS, which checks signed addresses and bytes as S3 does, and once more by a way that checks nothing.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import generate_latest
from sqlalchemy import select

from gramfuse.config import Endpoint, Token
from gramfuse.participation import Client
from gramfuse.transfer.retrying import RetryRule
from gramfuse.transfer.transport import Transport
from gramfuse_server.blobs import open_blobs
from gramfuse_server.database import reading, transaction
from gramfuse_server.doctor.storage import examine_direct
from gramfuse_server.intake.uploads import expire_uploads
from gramfuse_server.sweeping import delete_spent_bytes
from gramfuse_server.tables import AuditRow, PartOfferRow
from gramfuse_shared.contract.http_api import LOCATION_TYPE
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import ConflictError, TransportError
from support.careless import careless
from support.client_models import write_model
from support.client_world import URL, Site, Wire
from support.s3 import BUCKET, variables_to
from support.server_world import World, make_contribution, problem

PROJECT = "acme.tweets"
one_database = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # not its queries
OPEN = Policy(embeddings="average", embedding_taps="send", heads="shared", minimum_cohort=2)


@pytest.fixture
def make_direct(make_world, store, monkeypatch, tmp_path) -> Callable[..., World]:
    """Makes a server whose bytes lie in the store, under a prefix of the test's own."""

    def make(*, port: int = store.port, **changes: Any) -> World:
        for name, value in variables_to(port).items():
            monkeypatch.setenv(name, value)
        return make_world(blobs=f"s3://{BUCKET}/{tmp_path.name}", direct_transfers=True, **changes)

    return make


@pytest.fixture
def careless_port(store) -> Iterator[int]:
    """A way to the store by which it takes anything."""
    with careless(store) as port:
        yield port


@pytest.fixture
def direct(make_direct) -> World:
    return make_direct()


class Ways(Wire):
    """The way to the app, and by real HTTP to the store; writes down both, and breaks where it is told to."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.stored: list[httpx.Request] = []
        self.answers: list[int] = []
        self._http = httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    def close(self) -> None:
        self._http.close()

    def send(self, request: httpx.Request) -> httpx.Response:
        if request.url.port == urlsplit(URL).port:
            return super().send(request)
        self.requests.pop()
        self.stored.append(request)
        answer = self._http.handle_request(request)
        self.answers.append(answer.status_code)
        return answer

    def put_to_the_store(self) -> list[str]:
        return [request.url.path for request in self.stored if request.method == "PUT"]


def client_of(site: Site, ways: httpx.BaseTransport, *, through_server: bool = False, attempts: int = 1) -> Client:
    endpoint = Endpoint(URL, Token(site.token), allow_http=False, through_server=through_server)
    transport = Transport(endpoint, connection=ways, retry=RetryRule(attempts=attempts), sleep=lambda _: None)
    return Client(home=site.home, transport=transport, parallel=2, sleep=site._let_the_worker_work)


def count_of(world: World, counter: str) -> float:
    lines = generate_latest(world.app.state.registry).decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{counter} "))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def begun(direct) -> tuple[str, Any, dict[str, Any]]:
    """An open contribution: the path of its weights' parts, its member's client, and the file as it is expected."""
    return begin(direct)


def begin(world: World) -> tuple[str, Any, dict[str, Any]]:
    project = world.project("acme", "globex")
    contribution = make_contribution(project, "globex")
    member = world.participant("globex")
    path = f"/v1/projects/{PROJECT}/contributions/{contribution.id}"
    answer = member.put_document(path, contribution.manifest).json()
    (file,) = (file for file in answer["files"] if file["name"] == "weights.safetensors")
    return path, member, file | {"content": contribution.files["weights.safetensors"], "all": contribution.files}


def part_of(file: dict[str, Any], number: int) -> bytes:
    return file["content"][number * file["part_bytes"] : (number + 1) * file["part_bytes"]]


def announce(member: Any, path: str, number: int, content: bytes, **changes: Any) -> httpx.Response:
    body = {"bytes": len(content), "sha256": sha256_hex(content)} | changes
    return member.post(f"{path}/files/weights.safetensors/parts/{number}", json=body)


def put(place: dict[str, Any], content: bytes, **changed: str) -> httpx.Response:
    headers = place["headers"] | {"content-length": str(len(content))} | changed
    return httpx.put(place["url"], content=content, headers=headers)


# --- whole transfers -------------------------------------------------------------------------------------------------


@one_database
def test_no_part_and_no_file_passes_the_api_and_the_store_never_sees_the_token(direct, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    caplog.set_level(logging.WARNING, logger="botocore")  # as a server has it, whatever its own level
    site = Site(direct, "acme", "coordinator", tmp_path)
    ways, base = Ways(direct), write_model(tmp_path / "base")
    with client_of(site, ways) as client:
        client.create_project("tweets", base=base, policy=OPEN)
        pulled = client.pull_base("tweets", tmp_path / "pulled")
    assert bytes_of(pulled) == bytes_of(base)
    size = sum(len(content) for content in bytes_of(base).values())
    assert ways.parts_sent() == []
    assert count_of(direct, "gramfuse_upload_received_bytes_total") == 0
    assert count_of(direct, "gramfuse_upload_direct_bytes_total") == size
    assert count_of(direct, "gramfuse_download_sent_bytes_total") == 0
    assert count_of(direct, "gramfuse_download_direct_bytes_total") == size
    assert len(ways.put_to_the_store()) > len(bytes_of(base))
    assert not any("authorization" in request.headers for request in ways.stored)
    with reading(direct.services.database) as session:
        rows = session.scalars(select(AuditRow)).all()
    downloads = [row for row in rows if row.action == "file.download"]
    assert len(downloads) == len(bytes_of(base))
    assert all('"direct":true' in row.details for row in downloads)
    kept = "".join(row.details for row in rows) + caplog.text
    for request in ways.stored:
        assert request.url.params["X-Amz-Signature"] not in kept
    assert "X-Amz-Signature=" not in kept


@one_database
def test_who_goes_through_the_server_finds_the_same(direct, tmp_path):
    site = Site(direct, "acme", "coordinator", tmp_path)
    ways, base = Ways(direct), write_model(tmp_path / "base")
    with client_of(site, ways, through_server=True) as client:
        client.create_project("tweets", base=base, policy=OPEN)
        assert bytes_of(client.pull_base("tweets", tmp_path / "pulled")) == bytes_of(base)
    assert ways.stored == []
    assert ways.parts_sent()


@one_database
def test_a_client_that_cannot_reach_the_store_goes_through_the_server_and_says_so_once(direct, tmp_path, caplog):
    site = Site(direct, "acme", "coordinator", tmp_path)
    ways, base = Ways(direct), write_model(tmp_path / "base")

    class Blocked(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.port != urlsplit(URL).port:
                raise httpx.ConnectError("no route to host")
            return ways.handle_request(request)

    with client_of(site, Blocked()) as client:
        client.create_project("tweets", base=base, policy=OPEN)
        assert bytes_of(client.pull_base("tweets", tmp_path / "pulled")) == bytes_of(base)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "gramfuse"]
    assert "cannot be reached from here: no route to host; bytes go through the server instead" in said
    assert "?" not in said


@one_database
def test_a_rerun_sends_no_part_that_lies_in_the_store_not_even_one_whose_second_announcement_was_lost(direct, tmp_path):
    site = Site(direct, "acme", "coordinator", tmp_path)
    ways, base = Ways(direct), write_model(tmp_path / "base")
    announced = []

    def second_announcement_of_the_third_part(request: httpx.Request) -> bool:
        if request.method == "POST" and request.url.path.endswith("model.safetensors/parts/2"):
            announced.append(request)
        return len(announced) > 1

    ways.breaks_at = second_announcement_of_the_third_part
    with client_of(site, ways) as client, pytest.raises(TransportError):
        client.create_project("tweets", base=base, policy=OPEN)
    before = ways.put_to_the_store()
    assert any("model.safetensors/2." in path for path in before)
    ways.breaks_at = lambda _: False
    with client_of(site, ways) as client:
        client.create_project("tweets", base=base, policy=OPEN)
    everything = ways.put_to_the_store()
    assert len(everything) == len(set(everything)) > len(before)


@one_database
def test_a_download_that_broke_is_resumed_at_the_store_by_another_address(direct, tmp_path):
    site = Site(direct, "acme", "coordinator", tmp_path)
    ways, base = Ways(direct), write_model(tmp_path / "base")
    with client_of(site, ways) as client:
        client.create_project("tweets", base=base, policy=OPEN)
    ways.stored.clear()
    broken: list[bytes] = []

    class Breaking(httpx.SyncByteStream):
        def __init__(self, stream: httpx.SyncByteStream) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            broken.append(b"".join(self._stream)[:100])
            yield broken[-1]
            raise httpx.ReadError("connection reset")

        def close(self) -> None:
            self._stream.close()

    class Breaks(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = ways.handle_request(request)
            if (
                not broken
                and request.url.path.startswith(f"/{BUCKET}/")
                and int(answer.headers["content-length"]) > 100
            ):
                return httpx.Response(answer.status_code, headers=answer.headers, stream=Breaking(answer.stream))
            return answer

    with client_of(site, Breaks(), attempts=2) as client:
        assert bytes_of(client.pull_base("tweets", tmp_path / "pulled")) == bytes_of(base)
    (again,) = (request for request in ways.stored if "range" in request.headers)
    assert again.headers["range"] == f"bytes={len(broken[0])}-"
    assert [request.url.path for request in ways.stored].count(again.url.path) == 2
    assert ways.answers[-len(ways.stored) :].count(206) == 1


# --- what is handed out, and what counts -----------------------------------------------------------------------------


def test_a_part_counts_once_it_lies_there_and_announcing_it_again_changes_nothing(direct, begun):
    path, member, file = begun
    content = part_of(file, 0)
    first = announce(member, path, 0, content)
    assert first.status_code == 202
    parts = f"{path}/files/weights.safetensors/parts"
    assert member.get(parts).json()["parts"] == []
    assert announce(member, path, 0, content).status_code == 202  # nothing lies there yet
    assert put(first.json()["put"], content).status_code == 200
    assert announce(member, path, 0, content).status_code == 201
    again = announce(member, path, 0, content)
    assert (again.status_code, again.json()) == (
        200,
        {"number": 0, "bytes": len(content), "sha256": sha256_hex(content)},
    )
    assert [part["number"] for part in member.get(parts).json()["parts"]] == [0]
    assert member.put_part(f"{path}/files/weights.safetensors", 0, content).status_code == 200


def test_everything_is_checked_before_an_address_is_handed_out(direct, begun):
    path, member, file = begun
    content, other = part_of(file, 0), b"\1" * len(part_of(file, 0))
    problem(announce(member, path, 0, content[:-1]), 422, "part-out-of-range")
    problem(announce(member, path, 999, content), 422, "part-out-of-range")
    problem(announce(direct.participant("acme"), path, 0, content), 403, "role-required")
    problem(announce(direct.organization("initech"), path, 0, content), 404, "not-found")
    problem(announce(direct.client(), path, 0, content), 401, "unauthenticated")
    problem(announce(member, path, 0, content, sha256="no digest"), 422, "request-malformed")
    assert announce(member, path, 0, content).status_code == 202
    told = problem(announce(member, path, 0, other), 409, "conflict")  # so a part takes its own room and no more
    assert "GRAMFUSE_THROUGH_SERVER=1" in told["detail"]
    assert member.put_part(f"{path}/files/weights.safetensors", 0, other).status_code == 201
    problem(announce(member, path, 0, content), 409, "conflict")
    assert len([key for key in direct.stored_keys() if key.startswith("uploads/") and "weights" in key]) == 1


@one_database
def test_a_store_that_checks_refuses_every_byte_that_was_not_announced(direct, begun):
    path, member, file = begun
    content = part_of(file, 0)
    place = announce(member, path, 0, content).json()["put"]
    damaged = bytes([content[0] ^ 1]) + content[1:]
    assert put(place, damaged).status_code == 400
    assert put(place, content + b"more").status_code == 403
    assert (
        put(place, damaged, **{"x-amz-checksum-sha256": place["headers"]["x-amz-checksum-sha256"][::-1]}).status_code
        == 403
    )
    assert httpx.put(place["url"], content=content).status_code == 403  # without what was signed
    assert httpx.put(place["url"].replace("/0.", "/1."), content=content, headers=place["headers"]).status_code == 403
    assert httpx.get(place["url"]).status_code == 403
    assert announce(member, path, 0, content).status_code == 202
    assert put(place, content).status_code == 200
    assert direct.services.direct.checks_digests() is True


@one_database
def test_what_a_careless_store_took_is_read_and_replaced(make_direct, careless_port):
    world = make_direct(port=careless_port)
    path, member, file = begin(world)
    content = part_of(file, 0)
    place = announce(member, path, 0, content).json()["put"]
    assert put(place, bytes(len(content))).status_code == 200  # it takes anything
    refused = announce(member, path, 0, content)
    assert refused.status_code == 202
    assert "if-none-match" not in refused.json()["put"]["headers"]
    assert put(place, content).status_code == 412  # the first address may not overwrite
    assert put(refused.json()["put"], content[:-1]).status_code == 200
    assert announce(member, path, 0, content).status_code == 202  # of another length
    assert put(refused.json()["put"], content).status_code == 200
    assert announce(member, path, 0, content).status_code == 201
    assert world.services.direct.checks_digests() is False
    assert not [key for key in world.stored_keys() if key.startswith("probes/")]


@one_database
def test_a_client_whose_bytes_arrive_damaged_is_told_and_nothing_counts(direct, tmp_path):
    site = Site(direct, "acme", "coordinator", tmp_path)
    ways, base = Ways(direct), write_model(tmp_path / "base")

    class Damaging(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "PUT" and request.url.path.startswith(f"/{BUCKET}/"):
                content = request.read()
                damaged = bytes([content[0] ^ 1]) + content[1:]
                request = httpx.Request("PUT", request.url, headers=request.headers, content=damaged)
            return ways.handle_request(request)

    with client_of(site, Damaging(), attempts=2) as client, pytest.raises(Exception, match="damaged on the way"):
        client.create_project("tweets", base=base, policy=OPEN)
    assert set(ways.answers) == {400}
    assert not any(key.startswith("uploads/") for key in direct.stored_keys())


@one_database
def test_a_connection_that_is_dropped_in_the_middle_of_a_part_leaves_nothing(direct, begun):
    path, member, file = begun
    content = part_of(file, 0)
    place = announce(member, path, 0, content).json()["put"]
    parts = urlsplit(place["url"])
    head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in place["headers"].items()) + "\r\n"
    with contextlib.closing(socket.create_connection((parts.hostname, parts.port), timeout=10)) as connection:
        connection.sendall(head.encode() + content[:-1])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1024):
            pass
    assert announce(member, path, 0, content).status_code == 202
    assert not any("weights" in key for key in direct.stored_keys())


@one_database
def test_an_address_that_is_too_old_is_refused_and_the_client_asks_for_another(make_direct, tmp_path):
    world = make_direct(direct_lifetime=timedelta(0))
    site = Site(world, "acme", "coordinator", tmp_path)
    ways = Ways(world)
    with client_of(site, ways, attempts=3) as client, pytest.raises(TransportError, match=r"HTTP 403 \(AccessDenied\)"):
        client.create_project("tweets", base=write_model(tmp_path / "base"), policy=OPEN)
    assert ways.answers[:3] == [403, 403, 403]
    world.services.direct.lifetime = timedelta(minutes=1)
    with client_of(site, ways) as client:
        assert client.create_project("tweets", base=tmp_path / "base", policy=OPEN).state == "ready"


def test_after_the_seal_an_address_changes_nothing_and_closed_uploads_are_swept(direct, begun):
    path, member, file = begun
    places = []
    for name, content in file["all"].items():
        length = file["part_bytes"]
        for number in range(-(-len(content) // length)):
            part = content[number * length : (number + 1) * length]
            body = {"bytes": len(part), "sha256": sha256_hex(part)}
            target = f"{path}/files/{name}/parts/{number}"
            places.append((member.post(target, json=body).json()["put"], part))
            assert put(*places[-1]).status_code == 200
            assert member.post(target, json=body).status_code == 201
    assert member.post(f"{path}/seal").status_code == 200
    assert {put(*place).status_code for place in places} == {412}
    problem(announce(member, path, 0, b"\1" * file["part_bytes"]), 409, "wrong-state")
    direct.accept_contribution(path.rpartition("/")[2])
    assert put(*places[0]).status_code == 412
    delete_spent_bytes(direct.services.database, direct.services.blobs, direct.clock())
    assert not any(key.startswith("uploads/") for key in direct.stored_keys())
    assert put(*places[0]).status_code == 200  # within the address's minutes, where nothing lies any more …
    delete_spent_bytes(direct.services.database, direct.services.blobs, direct.clock())
    assert not any(key.startswith("uploads/") for key in direct.stored_keys())  # … and for a sweep's time
    with reading(direct.services.database) as session:
        assert session.scalars(select(PartOfferRow)).all() == []


@one_database
def test_what_was_put_and_never_announced_goes_with_its_upload(direct, begun):
    path, member, file = begun
    content = part_of(file, 0)
    assert put(announce(member, path, 0, content).json()["put"], content).status_code == 200
    delete_spent_bytes(direct.services.database, direct.services.blobs, direct.clock())
    assert any("weights" in key for key in direct.stored_keys())  # a rerun of the push will announce it
    direct.clock.advance(days=8)
    problem(announce(member, path, 0, content), 409, "wrong-state")
    with transaction(direct.services.database) as session:
        assert expire_uploads(session, direct.clock()) == 1
    delete_spent_bytes(direct.services.database, direct.services.blobs, direct.clock())
    assert not any("weights" in key for key in direct.stored_keys())


@one_database
def test_quotas_are_taken_before_anything_is_handed_out(make_direct):
    world = make_direct()
    project = world.project("acme", "globex")
    used = world.operator.get("/v1/admin/projects").json()["items"][0]["bytes"]
    world.services.settings.__dict__["project_quota_bytes"] = used + 1  # frozen for everybody else
    contribution = make_contribution(project, "globex")
    path = f"/v1/projects/{PROJECT}/contributions/{contribution.id}"
    problem(world.participant("globex").put_document(path, contribution.manifest), 413, "quota-exceeded")
    problem(announce(world.participant("globex"), path, 0, b"x"), 404, "not-found")


@one_database
def test_a_store_that_is_away_is_told_so_that_clients_come_again(direct, begun, monkeypatch):
    path, member, file = begun
    content = part_of(file, 0)
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    nobody = open_blobs(direct.services.settings.blobs, persistence="hardly").store
    object.__setattr__(direct.services.blobs, "store", nobody)  # frozen for everybody else
    answer = member.put_part(f"{path}/files/weights.safetensors", 0, content)
    assert "blob store" in problem(answer, 503, "unavailable")["detail"]
    assert answer.headers["retry-after"] == "1"
    assert announce(member, path, 0, content).status_code == 202
    problem(announce(member, path, 0, content), 503, "unavailable")
    problem(member.get(f"/v1/projects/{PROJECT}/base/files/config.json"), 503, "unavailable")


# --- before anybody comes ----------------------------------------------------------------------------------------


@one_database
def test_the_doctor_tells_whether_the_store_takes_and_checks_what_is_signed(
    make_direct, careless_port, settings, monkeypatch
):
    world = make_direct()

    def found(**changes: Any) -> list[tuple[str, str]]:
        changed = settings.model_copy(update={"blobs": f"s3://{BUCKET}/doctor", "direct_transfers": True} | changes)
        return [(finding.verdict, finding.found) for finding in examine_direct(changed)]

    ((verdict, told),) = found(direct_endpoint="https://store.example.org")
    assert (verdict, told) == (
        "ok",
        "clients are sent to store.example.org; the store refuses other bytes than were announced",
    )
    reachable = os.environ["AWS_ENDPOINT"]
    monkeypatch.setenv("AWS_ENDPOINT", variables_to(careless_port)["AWS_ENDPOINT"])
    ((verdict, told),) = found()
    assert (verdict, "so the API reads all parts" in told) == ("warning", True)
    monkeypatch.setenv("AWS_ENDPOINT", reachable)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    ((verdict, told),) = found()
    assert (verdict, "does not take what is signed: HTTP 403" in told) == ("failed", True)
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    ((verdict, told),) = found()
    assert (verdict, "refused" in told) == ("failed", True)
    assert found(direct_transfers=False) == []
    assert not [key for key in world.stored_keys() if "probes" in key]


# --- files -----------------------------------------------------------------------------------------------------------


@one_database
def test_a_files_place_is_told_to_who_accepts_it_and_lets_read_that_file_alone(direct):
    project = direct.project("acme", "globex")
    member = direct.participant("globex")
    path = f"/v1/projects/{project['id']}/base/files/model.safetensors"
    whole = member.get(path)
    assert whole.headers["content-type"] == "application/octet-stream"
    told = member.get(path, headers={"accept": f"{LOCATION_TYPE}, application/octet-stream"})
    assert (told.status_code, told.headers["content-type"]) == (200, LOCATION_TYPE)
    assert told.headers["cache-control"] == "no-store"
    document = told.json()
    assert (document["bytes"], document["sha256"]) == (len(whole.content), sha256_hex(whole.content))
    url = document["get"]["url"]
    assert httpx.get(url).content == whole.content
    assert httpx.get(url, headers={"range": "bytes=5-9"}).content == whole.content[5:10]
    assert httpx.put(url, content=b"mine").status_code == 403
    assert httpx.delete(url).status_code == 403
    config = sha256_hex(member.get(path.replace("model.safetensors", "config.json")).content)
    assert httpx.get(url.replace(document["sha256"], config)).status_code == 403
    head = member.head(path, headers={"accept": LOCATION_TYPE})
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))
    problem(direct.client().get(path, headers={"accept": LOCATION_TYPE}), 401, "unauthenticated")
    problem(member.get(path, headers={"accept": LOCATION_TYPE, "range": "bytes=999999-"}), 416, "range-not-satisfiable")


@one_database
def test_a_server_without_direct_transfers_says_so_and_takes_parts_itself(world):
    path, member, file = begin(world)
    assert "direct_transfers" not in member.get("/v1/server").json()
    content = part_of(file, 0)
    assert "PUT the part's bytes here" in problem(announce(member, path, 0, content), 404, "not-found")["detail"]
    base = f"/v1/projects/{PROJECT}/base/files/config.json"
    assert member.get(base, headers={"accept": f"{LOCATION_TYPE}, */*"}).headers["content-type"] == (
        "application/octet-stream"
    )


@one_database
def test_a_server_that_stops_offering_it_gets_the_rest_itself(direct, tmp_path):
    site = Site(direct, "acme", "coordinator", tmp_path)
    ways, base = Ways(direct), write_model(tmp_path / "base")
    held = direct.services.direct

    def switch_off(request: httpx.Request) -> bool:
        if len(ways.stored) == 2:
            object.__setattr__(direct.services, "direct", None)
        return False

    ways.breaks_at = switch_off
    with client_of(site, ways) as client:
        assert client.create_project("tweets", base=base, policy=OPEN).state == "ready"
    assert held is not None
    assert ways.parts_sent()
    with pytest.raises(ConflictError), client_of(site, ways) as client:
        client.create_project("tweets", base=write_model(tmp_path / "other", seed=2), policy=OPEN)
