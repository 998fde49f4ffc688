"""Traces: off unless the environment asks, and free of charge then."""

import os
import subprocess
import sys

import pytest

from gramfuse_server.tracing import ENDPOINT, new_provider, start_tracing
from gramfuse_shared.errors import ExtraMissingError

pytest.importorskip("opentelemetry.sdk.trace")


def run(script: str, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GRAMFUSE_"))}
    subprocess.run([sys.executable, "-c", script], check=True, env=inherited | environment)


def test_unless_it_is_asked_for_nothing_is_started_and_nothing_is_imported():
    run(
        "import os, sys, gramfuse_server.app\n"
        "from gramfuse_server.tracing import start_tracing\n"
        "assert start_tracing('x') is False\n"
        f"os.environ['{ENDPOINT}'] = ''\n"
        "assert start_tracing('x') is False\n"
        "unwanted = ('opentelemetry.sdk', 'opentelemetry.exporter', 'google.protobuf')\n"
        "found = [name for name in sys.modules if name.startswith(unwanted)]\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )


def test_without_its_packages_the_answer_says_what_to_install(monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ExtraMissingError, match=r'pip install "\.\[telemetry\]"'):
        start_tracing("gramfuse-api")


APP = """
import anyio, httpx, sys
from pathlib import Path
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from gramfuse_server import receipt_key
from gramfuse_server.app import create_app
from gramfuse_server.database import open_database
from gramfuse_server.settings import Settings
from gramfuse_server.tracing import new_provider

settings = Settings(server_home=Path(sys.argv[1]))
open_database(settings.database_url, create=True).write.connect().close()
receipt_key.create_key(settings.receipt_key)
memory = InMemorySpanExporter()
provider = new_provider("gramfuse-api")
provider.add_span_processor(SimpleSpanProcessor(memory))
trace.set_tracer_provider(provider)

async def ask(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        await client.get("/v1/projects?cursor=hidden", headers={"authorization": "Bearer hidden"})
        await client.put("/v1/organizations/acme", content=b"hidden")

anyio.run(ask, create_app(settings))
assert memory.get_finished_spans() == (), "whatever the environment says"
anyio.run(ask, create_app(settings, traced=True))
spans = memory.get_finished_spans()
assert [span.name for span in spans] == ["GET /v1/projects", "PUT /v1/organizations/{organization}"], spans
assert [span.attributes["http.route"] for span in spans] == ["/v1/projects", "/v1/organizations/{organization}"]
assert spans[0].attributes["url.query"] == "***"
assert not [span for span in spans if "hidden" in span.to_json()]
assert not [span for span in spans if span.events]
"""


def test_a_requests_span_has_its_route_and_neither_query_nor_token_nor_body_and_by_default_there_is_none(tmp_path):
    # a process of its own: the library keeps one provider for all, for good
    command = [sys.executable, "-W", "ignore", "-c", APP, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GRAMFUSE_"))}
    asked = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_TRACES_EXPORTER": "otlp"}
    finished = subprocess.run(command, env=environment | asked, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_services_name_is_the_environments_if_it_has_one(monkeypatch):
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert new_provider("gramfuse-api").resource.attributes["service.name"] == "gramfuse-api"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "merging")
    assert new_provider("gramfuse-api").resource.attributes["service.name"] == "merging"
