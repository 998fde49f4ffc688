"""The TLS proxy of deploy/proxy in front of a real API: what passes through it, and what it must not keep."""

import base64
import functools
import hashlib
import http.client
import json
import signal
import ssl
from contextlib import contextmanager

import pytest

from gramfuse.contributing.base_model import open_base_folder
from gramfuse_shared.contract.http_api import ProjectCreate
from gramfuse_shared.limits import MIB
from support import tiny
from support.collaboration import begin, contribute
from support.deployment import HOST, wait_until
from support.proxy import INSTALL, find_nginx, proxied

pytestmark = [
    pytest.mark.skipif(find_nginx() is None, reason=INSTALL),
    pytest.mark.parametrize("deployment", ["sqlite"], indirect=True),
]


@pytest.fixture
def proxy(deployment, tmp_path, monkeypatch):
    with proxied(tmp_path / "proxy", deployment.port) as running:
        monkeypatch.setenv("SSL_CERT_FILE", str(running.authority))
        yield running


@contextmanager
def connection(proxy):
    """A connection as a browser's, which trusts the proxy's authority."""
    context = ssl.create_default_context(cafile=proxy.authority)
    opened = http.client.HTTPSConnection(HOST, proxy.port, timeout=20, context=context)
    try:
        yield opened
    finally:
        opened.close()


def test_everything_that_organizations_do_passes_and_events_arrive_when_they_happen(deployment, proxy, monkeypatch):
    collaboration = begin(deployment, ["tls-a", "tls-b", "tls-c"], url=proxy.url)
    contribute(collaboration, statistics=False)
    acme = collaboration.coordinator

    # without the authority: refused at once, and told what to do
    monkeypatch.delenv("SSL_CERT_FILE")
    refused = acme.run("whoami")
    assert refused.returncode == 4
    assert "certificate is not trusted" in refused.stderr
    assert "SSL_CERT_FILE" in refused.stderr
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    assert acme.json("whoami")["organization"] == "tls-a"

    (worker,) = deployment.workers
    worker.send_signal(signal.SIGSTOP)
    try:
        acme.gramfuse("job", "submit", collaboration.project, "--method", "linear", "--id", "merged")
        with connection(proxy) as opened:
            headers = {"Authorization": f"Bearer {acme.token}"}
            opened.request("GET", collaboration.path("/jobs/merged/events"), headers=headers)
            answer = opened.getresponse()
            assert answer.readline() == b"event: job\n"  # and no end is in sight: nobody works
            assert json.loads(answer.readline().removeprefix(b"data: "))["state"] == "queued"
            worker.send_signal(signal.SIGCONT)
            rest = answer.read()
        assert b'"state":"succeeded"' in rest
    finally:
        worker.send_signal(signal.SIGCONT)
    acme.gramfuse("model", "pull", collaboration.project, "merged", "merged")
    acme.gramfuse("model", "verify", "merged")

    assert f"{HOST} PUT {collaboration.path('/jobs/merged')} 201" in proxy.log()
    assert acme.token not in proxy.log()


class HalfSent:
    """A part of an open upload, half of which is on its way to a proxy."""

    def __init__(self, deployment, proxy, opened, folder) -> None:
        desk = deployment.desk(f"half-{proxy.port}", role="coordinator")
        tiny.write_base(folder, hidden=512, layers=1)
        manifest = open_base_folder(folder, part_bytes=MIB).manifest
        path = f"/v1/projects/{desk.name}.tweets"
        with desk.client() as client:
            client._transport.call("PUT", path, json=ProjectCreate(base=manifest).model_dump(mode="json"))
        with (folder / "model.safetensors").open("rb") as file:
            self.content = file.read(MIB)
        self.opened = opened
        opened.putrequest("PUT", f"{path}/base/files/model.safetensors/parts/0")
        opened.putheader("Authorization", f"Bearer {desk.token}")
        opened.putheader("Content-Length", str(MIB))
        digest = base64.b64encode(hashlib.sha256(self.content).digest()).decode()
        opened.putheader("Content-Digest", f"sha-256=:{digest}:")
        opened.endheaders(self.content[: MIB // 2])

    def finish(self) -> int:
        self.opened.send(self.content[MIB // 2 :])
        return self.opened.getresponse().status


def spooled(proxy) -> set[str]:
    """Files that the proxy put bodies into."""
    return {
        path
        for path in proxy.open_files()
        if path.startswith((f"{proxy.folder}/client-body", f"{proxy.folder}/proxy/"))
    }


def test_no_byte_of_a_part_lies_in_a_file_of_the_proxy(deployment, proxy, tmp_path):
    with (  # what would be seen
        proxied(tmp_path / "buffering", deployment.port, proxy_request_buffering="on") as other,
        connection(other) as opened,
    ):
        part = HalfSent(deployment, other, opened, tmp_path / "one")
        wait_until(functools.partial(spooled, other), seconds=20, what="a file of a proxy that buffers")
        assert part.finish() == 201
    with connection(proxy) as opened:
        part = HalfSent(deployment, proxy, opened, tmp_path / "two")
        assert spooled(proxy) == set()
        assert part.finish() == 201
        assert spooled(proxy) == set()


def test_a_part_is_refused_by_its_headers_before_its_bytes_are_there(deployment, proxy):
    with connection(proxy) as opened:
        opened.putrequest("PUT", "/v1/projects/acme.tweets/base/files/model.safetensors/parts/0")
        opened.putheader("Authorization", "Bearer gf_0123456789abcdef_" + "0" * 64)
        opened.putheader("Content-Length", str(MIB))
        opened.endheaders(bytes(1000))
        answer = opened.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (401, "application/problem+json")


def test_browsers_get_cookies_for_https_alone_and_metrics_are_nowhere(deployment, proxy):
    with connection(proxy) as opened:
        opened.request("GET", "/dashboard/sign-in", headers={"X-Forwarded-Proto": "http"})
        answer = opened.getresponse()
        answer.read()
        assert answer.status == 200
        assert "secure" in answer.getheader("Set-Cookie").lower()
        assert answer.getheader("Strict-Transport-Security") == "max-age=31536000"
        assert answer.getheader("Server") == "nginx"  # without its version
        opened.request("GET", "/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
        answer = opened.getresponse()
        answer.read()
        assert answer.status == 404
        request_id = answer.getheader("X-Request-Id")
    wait_until(lambda: request_id in proxy.log(), seconds=20, what="the proxy's line of the request")
    assert "203.0.113.9" not in proxy.log()
