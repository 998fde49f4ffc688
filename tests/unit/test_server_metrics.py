"""What Prometheus is told, where, and that the dashboard and the alerts ask for nothing else."""

import json
import re
import socket
import urllib.error
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr, ValidationError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gramfuse_server.clock import system_clock
from gramfuse_server.database import open_database
from gramfuse_server.metrics.disks import DiskCollector, disks_of_api, disks_of_worker
from gramfuse_server.metrics.requests import RequestMetrics, route_of
from gramfuse_server.metrics.serving import new_registry, serving_metrics
from gramfuse_server.metrics.state import StateCollector
from gramfuse_server.metrics.work import WorkMetrics
from gramfuse_server.settings import Settings
from gramfuse_server.tables import Row
from gramfuse_shared.errors import ConfigurationError
from support.scraping import scrape

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "gramfuse.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
OPERATIONS = ROOT / "docs" / "operations.md"

NOT_OURS = {"up", "instance", "job", "le"}
"""What Prometheus itself adds."""


@pytest.fixture
def database(tmp_path):
    opened = open_database(SecretStr(f"sqlite:///{tmp_path}/gramfuse.sqlite"), create=True)
    Row.metadata.create_all(opened.write)
    yield opened
    opened.close()


@pytest.fixture
def registry(database, tmp_path) -> CollectorRegistry:
    """Everything that an API and a worker tell, with one sample at least of each."""
    registry = new_registry()
    registry.register(StateCollector(database, system_clock, lease=timedelta(seconds=5)))
    registry.register(disks_of_worker(Settings(server_home=tmp_path)))
    RequestMetrics(registry).answered(method="GET", route="/healthz", status=200, seconds=0.01)
    work = WorkMetrics(registry)
    work.shard_finished(seconds=2.0, read_bytes=300, written_bytes=100)
    work.shard_stopped()
    work.model_published()
    work.attempt_failed("conflict")
    work.inspected("accepted", seconds=0.2)
    work.swept(expired_uploads=1, deleted_files=4)
    work.took_over(1)
    work.duty_ended("sweep", well=True)
    work.duty_ended("beat", well=False)
    return registry


def samples(registry) -> dict[str, set[str]]:
    """The names of a registry's samples with their labels."""
    told: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            told.setdefault(sample.name, set()).update(sample.labels)
    return told


# --- the dashboard and the alerts -------------------------------------------------------------------------------------


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def alert_queries() -> list[str]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule["expr"] for rule in group["rules"]]


NAME = re.compile(r"\b(?:gramfuse|process)_[a-z_]+\b|\bup\b")
SELECTED = re.compile(r"(\w+)\{([^}]*)\}")
GROUPED = re.compile(r"by \(([^)]*)\)")


@pytest.mark.parametrize("queries", [dashboard_queries, alert_queries])
def test_every_metric_and_label_that_is_asked_for_exists(registry, queries):
    told = samples(registry)
    found = queries()
    assert len(found) > 5
    for query in found:
        names = set(NAME.findall(query))
        assert names, query
        assert names - NOT_OURS <= told.keys(), query
        for name, matchers in SELECTED.findall(query):
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= told.get(name, set()) | NOT_OURS, query
        labels = set().union(*(told.get(name, set()) for name in names))
        for group in GROUPED.findall(query):
            assert {label.strip() for label in group.split(",")} <= labels | NOT_OURS, query


def test_every_metric_of_ours_is_explained_where_operators_read(registry):
    told = {family.name for family in registry.collect() if family.name.startswith("gramfuse_")}
    explained = OPERATIONS.read_text()
    counters = {family.name for family in registry.collect() if family.type == "counter"}
    missing = {name + ("_total" if name in counters else "") for name in told}
    assert {name for name in missing if f"`{name}" not in explained} == set()


def test_every_alert_is_explained_where_operators_read():
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    explained = OPERATIONS.read_text()
    assert [rule["alert"] for rule in group["rules"] if f"`{rule['alert']}`" not in explained] == []


def test_the_dashboards_panels_have_numbers_of_their_own_and_do_not_overlap():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_prometheus_scrapes_the_services_of_the_compose_file_at_the_port_that_it_names():
    compose = (ROOT / "docker-compose.yml").read_text()
    services = yaml.safe_load(compose)["services"]
    for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        assert f"GRAMFUSE_METRICS_PORT={found['port']} " in compose
        (name,) = found["names"]
        called = {
            service
            for service, described in services.items()
            if name == service or name in re.findall(r"'aliases': \['(\w+)'\]", str(described["networks"]))
        }
        workers = {service for service in services if service.startswith("worker-")}
        assert called == (workers if job["job_name"] == "gramfuse-worker" else {"api"})
        assert job["job_name"].startswith("gramfuse-")


def test_names_follow_the_conventions_units_last_and_spelt_out(registry):
    for family in registry.collect():
        if family.name.startswith("gramfuse_"):
            assert re.fullmatch(r"[a-z]+(_[a-z]+)+", family.name)
            assert family.documentation.endswith(".")
            assert ("duration" in family.name) <= family.name.endswith("_seconds")
            assert ("bytes" in family.name) <= family.name.endswith("_bytes")


# --- requests ---------------------------------------------------------------------------------------------------------


def answer(_):
    return PlainTextResponse("ok")


async def play(path, method="GET"):
    """Send a request through an app with a mount; return the scope that is left."""
    inner = Starlette(routes=[Route("/page/{name}", answer), Mount("/files", StaticFiles(directory="/"))])
    app = Starlette(routes=[Route("/things/{thing}", answer), Mount("/inner", inner)])
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_):
        return None

    await app(scope, receive, send)
    return scope


@pytest.mark.parametrize(
    ("path", "method", "route"),
    [
        ("/things/secret-name", "GET", "/things/{thing}"),
        ("/things/secret-name", "DELETE", "/things/{thing}"),
        ("/inner/page/secret-name", "GET", "/inner/page/{name}"),
        ("/inner/files/secret-name", "GET", "/inner/files/{path}"),
        ("/inner/secret-name", "GET", "/inner/{path}"),
        ("/secret-name", "GET", "unmatched"),
    ],
)
@pytest.mark.anyio
async def test_a_request_is_known_by_its_routes_template(path, method, route):
    assert route_of(await play(path, method)) == route


def test_what_callers_make_up_makes_no_new_series():
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry)
    for number in range(50):
        metrics.answered(method=f"M{number}", route="unmatched", status=404, seconds=0.1)
    metrics.answered(method="GET", route="/healthz", status=0, seconds=0.1)
    assert series(registry) == {("GET", "/healthz", "aborted"): 1, ("other", "unmatched", "404"): 50}


def series(registry) -> dict[tuple[str, ...], float]:
    """What is counted of requests, by its labels."""
    found = [sample for family in registry.collect() for sample in family.samples]
    ours = [sample for sample in found if sample.name == "gramfuse_http_requests_total"]
    return {tuple(sample.labels.values()): sample.value for sample in ours}


@pytest.mark.anyio
async def test_bytes_are_counted_as_they_are_sent_and_not_before():
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry)

    async def chunks():
        yield b"abc"
        yield b"de"

    counted = metrics.counted(chunks())
    assert await anext(counted) == b"abc"
    assert registry.get_sample_value("gramfuse_download_sent_bytes_total") == 3
    assert [chunk async for chunk in counted] == [b"de"]
    assert registry.get_sample_value("gramfuse_download_sent_bytes_total") == 5


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- where they are served --------------------------------------------------------------------------------------------


def test_the_room_of_each_folder_is_told_whether_it_is_made_already_or_not(tmp_path):
    asked = []

    def usage(folder):
        asked.append(folder)
        return SimpleNamespace(free=7)

    folders = {"blobs": tmp_path, "scratch": tmp_path / "not" / "yet", "database": None}
    (family,) = DiskCollector(folders, usage).collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"place": "blobs"}, 7),
        ({"place": "scratch"}, 7),
    ]
    assert asked == [tmp_path, tmp_path]


def test_a_disk_that_cannot_be_looked_at_spoils_no_scrape(tmp_path):
    def usage(folder):
        raise OSError("stale")

    (family,) = DiskCollector({"blobs": tmp_path}, usage).collect()
    assert family.samples == []


def test_of_a_store_and_a_database_elsewhere_no_room_is_claimed(tmp_path):
    elsewhere = Settings(
        server_home=tmp_path, database_url=SecretStr("postgresql://db/x"), blobs="s3://bucket/x", scratch=tmp_path
    )

    def places(collector):
        (family,) = collector.collect()
        return [sample.labels["place"] for sample in family.samples]

    assert places(disks_of_api(elsewhere)) == []
    assert places(disks_of_worker(elsewhere)) == ["scratch"]
    assert places(disks_of_api(Settings(server_home=tmp_path))) == ["blobs", "database"]


def test_without_a_port_nothing_is_served(tmp_path):
    with serving_metrics(Settings(server_home=tmp_path), CollectorRegistry()) as port:
        assert port is None


def test_with_a_port_it_is_on_loopback_while_the_process_works_and_gone_afterwards(tmp_path, registry):
    settings = Settings(server_home=tmp_path, metrics_port=0)
    assert settings.metrics_host == "127.0.0.1"
    with serving_metrics(settings, registry) as port:
        assert "gramfuse_workers_alive 0.0" in scrape(port)
        taken = settings.model_copy(update={"metrics_port": port})
        with (
            pytest.raises(ConfigurationError, match=rf"127.0.0.1:{port}.*GRAMFUSE_METRICS_PORT"),
            serving_metrics(taken, registry),
        ):
            pytest.fail("two on one port")
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_a_port_that_is_none_is_refused(tmp_path, monkeypatch):
    for port in (-1, 65_536):
        with pytest.raises(ValidationError):
            Settings(server_home=tmp_path, metrics_port=port)
    monkeypatch.setenv("GRAMFUSE_METRICS_PORT", "")  # as the compose file passes it
    assert Settings(server_home=tmp_path).metrics_port is None


# --- the state in the database ----------------------------------------------------------------------------------------


def test_a_database_that_is_away_is_told_and_nothing_else_is_claimed():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = open_database(SecretStr(f"postgresql://u:p@127.0.0.1:{closed.getsockname()[1]}/x"))
        registry = CollectorRegistry()
        registry.register(StateCollector(away, system_clock, lease=timedelta(seconds=5)))
        told = generate_latest(registry).decode()
        away.close()
    assert "gramfuse_database_up 0.0" in told
    assert "gramfuse_jobs" not in told
    assert "gramfuse_workers_alive" not in told
