"""Uploads of a real client to a real API: others are answered meanwhile, and the server's memory does not grow."""

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gramfuse.config import Endpoint, Token
from gramfuse.contributing.base_model import open_base_folder
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import send_missing_parts
from gramfuse_shared.contract.http_api import Project, ProjectCreate
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.digest import format_content_digest, sha256_hex
from gramfuse_shared.limits import MIB
from support.deployment import HOST, Deployment, Desk

# A blocked event loop stalls for as long as a part takes to arrive, hash and store. The bound leaves room for a busy
# machine; the strict one, 50 ms at the 99th percentile, is the benchmark's.
LONGEST_ANSWER_SECONDS = 0.5
GROWTH_BYTES = 24 * MIB
FILE_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that nobody will check: it is never sealed."""
    folder = tmp_path_factory.mktemp("base")
    header = format_header([("encoder.weight", "F32", (FILE_BYTES // 4096, 1024))], {"format": "pt"})
    (folder / "model.safetensors").write_bytes(header + random.Random(0).randbytes(FILE_BYTES))
    (folder / "config.json").write_text('{"model_type": "tiny", "vocab_size": 31}')
    return folder


def upload(desk: Desk, name: str, base: Path, *, parallel: int) -> None:
    """Open a project and send all of its base model."""
    transport = Transport(Endpoint(desk.url, Token(desk.token), allow_http=True))
    with contextlib.closing(transport):
        folder, path = open_base_folder(base), f"v1/projects/{desk.name}.{name}"
        body = ProjectCreate(base=folder.manifest, policy=Policy()).model_dump(mode="json")
        created = Project.parse(transport.call("PUT", path, json=body))
        send_missing_parts(transport, f"{path}/base", folder.files, created.files, parallel=parallel)


@contextlib.contextmanager
def trickling(deployment: Deployment, desk: Desk, base: Path) -> Iterator[None]:
    """One more upload, whose part arrives byte by byte for as long as the block lasts."""
    upload_of = open_base_folder(base)
    transport = Transport(Endpoint(desk.url, Token(desk.token), allow_http=True))
    with contextlib.closing(transport):
        body = ProjectCreate(base=upload_of.manifest, policy=Policy()).model_dump(mode="json")
        transport.call("PUT", f"v1/projects/{desk.name}.trickle", json=body)
    content = (base / "config.json").read_bytes()
    head = (
        f"PUT /v1/projects/{desk.name}.trickle/base/files/config.json/parts/0 HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Authorization: Bearer {desk.token}\r\nContent-Length: {len(content)}\r\n"
        f"Content-Digest: {format_content_digest(sha256_hex(content))}\r\n\r\n"
    )
    done = threading.Event()
    with socket.create_connection((HOST, deployment.port), timeout=30) as connection:
        connection.sendall(head.encode())

        def drip() -> None:
            for byte in content[:-1]:
                connection.sendall(bytes([byte]))
                if done.wait(0.05):
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            yield
        finally:
            done.set()
            dripping.join()


def answer_seconds(deployment: Deployment, until: threading.Event) -> list[float]:
    """Ask for /healthz again and again; return how long each answer took."""
    taken = []
    with contextlib.closing(http.client.HTTPConnection(HOST, deployment.port, timeout=30)) as connection:
        while not until.is_set():
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"status":"ok","checks":{}}'
            taken.append(time.perf_counter() - began)
            time.sleep(0.005)
    return taken


def test_health_is_answered_while_eight_parts_arrive_at_once_and_another_trickles(deployment, base):
    desk = deployment.desk("busy", role="coordinator")
    done = threading.Event()
    failures: list[Exception] = []

    def send() -> None:
        try:
            for number in range(3):
                upload(desk, f"busy-{number}", base, parallel=8)
        except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
            failures.append(error)
        finally:
            done.set()

    with trickling(deployment, desk, base):
        sending = threading.Thread(target=send)
        sending.start()
        taken = sorted(answer_seconds(deployment, done))
        sending.join()
    assert not failures
    assert len(taken) > 20
    assert taken[len(taken) * 95 // 100] < LONGEST_ANSWER_SECONDS


def resident_bytes(deployment: Deployment) -> int:
    assert deployment.api is not None
    status = Path(f"/proc/{deployment.api.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_the_servers_memory_does_not_grow_with_the_bytes_it_received(deployment, base):
    desk = deployment.desk("steady", role="coordinator")
    for number in range(3):
        upload(desk, f"warm-{number}", base, parallel=4)
    before = resident_bytes(deployment)
    for number in range(6):
        upload(desk, f"steady-{number}", base, parallel=4)
    assert resident_bytes(deployment) - before < GROWTH_BYTES  # 144 MiB came


@contextlib.contextmanager
def standing_still(deployment: Deployment, slow: Desk, base: Path) -> Iterator[None]:
    """Hundreds of connections that send no more: within heads, bodies of nobody, parts of one organization."""
    path = f"/v1/projects/{slow.name}.slow/base/files/model.safetensors/parts/0"
    upload_of = open_base_folder(base)
    transport = Transport(Endpoint(slow.url, Token(slow.token), allow_http=True))
    with contextlib.closing(transport):
        body = ProjectCreate(base=upload_of.manifest, policy=Policy()).model_dump(mode="json")
        transport.call("PUT", path[1:].partition("/base")[0], json=body)
    digest = format_content_digest(sha256_hex((base / "model.safetensors").read_bytes()[:MIB]))
    part = f"PUT {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {MIB}\r\nContent-Digest: {digest}\r\n"
    sent = (
        *(f"GET /healthz HTTP/1.1\r\nx-{number}: " for number in range(300)),
        *[f"{part}\r\n{'x' * 60_000}"] * 100,
        *[f"{part}Authorization: Bearer {slow.token}\r\n\r\n{'x' * 60_000}"] * 60,
    )
    with contextlib.ExitStack() as stack:
        for content in sent:
            connection = stack.enter_context(socket.create_connection((HOST, deployment.port), timeout=30))
            connection.sendall(content.encode())
        yield


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)
def test_hundreds_of_connections_that_stand_still_hold_up_nobody_and_cost_little_memory(deployment, base):
    honest, slow = deployment.desk("honest", role="coordinator"), deployment.desk("slow", role="coordinator")
    upload(honest, "before", base, parallel=4)
    before, done = resident_bytes(deployment), threading.Event()
    with standing_still(deployment, slow, base):
        watching = threading.Thread(target=lambda: taken.extend(answer_seconds(deployment, done)))
        taken: list[float] = []
        watching.start()
        try:
            upload(honest, "beside", base, parallel=4)
        finally:
            done.set()
            watching.join()
        grown = resident_bytes(deployment) - before
    taken.sort()
    assert taken[len(taken) * 95 // 100] < LONGEST_ANSWER_SECONDS
    assert grown < 2 * GROWTH_BYTES  # eight buffers of a MiB, and what 460 connections hold
