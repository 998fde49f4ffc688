"""The compose file in a real engine, by the commands of the guides: `make containers`.

One server, in the order of its life: started, used, hurt, saved, lost and brought back.
"""

import json
import os
import re
import subprocess
import urllib.parse
from collections.abc import Iterator

import pytest
import torch
from transformers import BertForSequenceClassification

import gramfuse
from support import compose
from support.collaboration import Collaboration, contribute, gather
from support.compose import Stack, shell_block
from support.deployment import wait_until

MISSING = compose.missing()
pytestmark = [
    pytest.mark.skipif(bool(MISSING) and "GRAMFUSE_REQUIRE_CONTAINERS" not in os.environ, reason=MISSING),
    pytest.mark.timeout(1800),
]
REGMEAN = gramfuse.Recipe(merge_method="regmean")
UP = "docker compose --profile cpu up --detach --wait"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    assert not MISSING, f"{MISSING}. These tests start containers: they need Docker's engine and compose 2.24 or newer"
    with compose.composed(tmp_path_factory.mktemp("compose")) as made:
        yield made


@pytest.fixture(scope="module")
def started(stack: Stack) -> str:
    """What the guide's first block prints: both images are built, everything is started, and well."""
    (stack.folder / "server.env").write_text("GRAMFUSE_LOG_FORMAT=json\n")
    return stack.shell(shell_block("deployment.md", "## With the compose file"), timeout=1500)


@pytest.fixture(scope="module")
def collaboration(stack: Stack, started: str) -> Collaboration:
    desks = tuple(stack.desk(name, role="participant" if n else "coordinator") for n, name in enumerate("abc"))
    made = gather(desks)
    contribute(made)
    return made


def queried(stack: Stack, path: str, **query: str) -> list[dict[str, object]]:
    """An answer of Prometheus, which no port leads to: asked from within its network."""
    url = f"http://prometheus:9090/api/v1/{path}?{urllib.parse.urlencode(query)}"
    ask = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
    answer = json.loads(stack.inside("api", "python", "-c", ask))
    assert answer["status"] == "success"
    return answer["data"]


def test_the_guides_first_commands_start_a_server_that_finds_itself_well(stack, started):
    assert re.search(r"operator +gf_\w+", started)
    assert re.search(r"receipt key +\S{40,}", started)
    assert "0 failed, 0 warnings" in started
    assert "gf_" not in stack.shell("docker compose logs migrate")  # the token is in no log any more
    assert (stack.folder / ".env").stat().st_mode & 0o077 == 0
    again = shell_block("deployment.md", "## With the compose file").splitlines()[0]
    with pytest.raises(AssertionError, match="cannot overwrite"):
        stack.shell(again)  # a second start does not lose the database's password


def test_settings_of_the_operators_reach_api_and_workers(stack, started):
    ask = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v1/server')"
    stack.inside("api", "python", "-c", ask)  # what health checks ask is not logged
    for service in ("api", "worker-cpu"):
        assert stack.inside(service, "printenv", "GRAMFUSE_LOG_FORMAT").strip() == "json"
        assert '"event"' in stack.shell(f"docker compose logs --no-log-prefix {service}")


def test_a_container_writes_to_its_volumes_alone_and_has_no_rights(stack, started):
    for service in ("api", "worker-cpu"):
        assert stack.inside(service, "id", "-u").strip() == "10001"
        status = stack.inside(service, "cat", "/proc/1/status")
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        for place in ("/", "/opt/gramfuse", "/var/lib/gramfuse", "/var/lib/gramfuse/keys", "/usr/local/bin"):
            with pytest.raises(AssertionError, match=r"Read-only file system|Permission denied"):
                stack.inside(service, "touch", f"{place}/written")
        stack.inside(service, "sh", "-c", "touch /tmp/written && rm /tmp/written")


def test_postgresql_has_a_read_only_root_and_gramfuses_role_is_no_superuser_of_it(stack, started):
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.inside("postgres", "touch", "/written")
    asked = "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolcanlogin ORDER BY 1"
    roles = stack.inside("postgres", "psql", "--username=gramfuse", "--no-align", "--tuples-only", f"--command={asked}")
    assert roles.split() == ["gramfuse|f|f|f", "postgres|t|t|t"]
    url = stack.inside("api", "printenv", "GRAMFUSE_DATABASE_URL").strip().replace("+psycopg", "")
    connect = "import psycopg, sys; psycopg.connect(sys.argv[1])"
    stack.inside("api", "python", "-c", connect, url)
    with pytest.raises(AssertionError, match="authentication failed"):
        stack.inside("api", "python", "-c", connect, url.replace("//gramfuse:", "//postgres:"))


def test_a_worker_reaches_nothing_outside_of_its_network(stack, started):
    """The engine drops what would leave an internal network; ports of its own machine are another matter."""
    address = stack.state("api", f'{{{{(index .NetworkSettings.Networks "{stack.project}_frontend").IPAddress}}}}')
    connect = f"import socket; socket.create_connection(({address!r}, 8080), timeout=3).close()"
    stack.inside("api", "python", "-c", connect)
    with pytest.raises(AssertionError, match=r"timed out|unreachable"):
        stack.inside("worker-cpu", "python", "-c", connect)
    stack.inside("worker-cpu", "python", "-c", connect.replace(repr(address), "'postgres'").replace("8080", "5432"))


def test_three_organizations_merge_by_the_servers_containers(collaboration):
    acme, globex, _ = collaboration.desks
    with acme.client() as client:
        client.submit(collaboration.project, REGMEAN, job="first")
        assert client.wait(collaboration.project, "first").state == "succeeded"
    globex.gramfuse("model", "pull", collaboration.project, "first", "first")
    assert len(globex.json("model", "verify", "first")["receipt"]["contributions"]) == 3
    model = BertForSequenceClassification.from_pretrained(globex.folder / "first")
    assert torch.isfinite(model(torch.tensor([[2, 5, 6, 3]])).logits).all()


def test_a_worker_that_is_killed_is_started_again_and_its_job_ends_well(stack, collaboration):
    """The kernel's kill, as for want of memory: compose starts a container again whose process has died."""
    acme = collaboration.coordinator
    before = int(stack.state("worker-cpu", "{{.RestartCount}}"))
    (child,) = stack.inside("worker-cpu", "cat", "/proc/1/task/1/children").split()
    with acme.client() as client:
        client.submit(collaboration.project, REGMEAN, job="second")
        stack.inside("worker-cpu", "sh", "-c", f"kill -9 {child}")  # what docker's init started
        wait_until(lambda: int(stack.state("worker-cpu", "{{.RestartCount}}")) > before, seconds=60, what="a new start")
        assert client.wait(collaboration.project, "second").state == "succeeded"
    wait_until(lambda: stack.state("worker-cpu", "{{.State.Health.Status}}") == "healthy", seconds=120, what="health")


def test_a_worker_that_is_stopped_ends_by_itself(stack, collaboration):
    stack.shell("docker compose stop worker-cpu")
    assert stack.state("worker-cpu", "{{.State.ExitCode}}") == "0"
    stack.shell(UP)


def test_the_receipt_key_is_rotated_by_the_guides_commands_and_clients_follow(stack, collaboration):
    globex = collaboration.desks[1]
    old = globex.json("model", "verify", "first")
    stack.shell(shell_block("operations.md", "where `migrate` alone may write the key"))
    with collaboration.coordinator.client() as client:
        client.submit(collaboration.project, REGMEAN, job="rotated")
        assert client.wait(collaboration.project, "rotated").state == "succeeded"
    for model in ("first", "rotated"):
        globex.gramfuse("model", "pull", collaboration.project, model, f"{model}-anew")
    assert globex.json("model", "verify", "first-anew")["receipt"] == old["receipt"]
    assert len(globex.json("model", "verify", "rotated-anew")["receipt"]["contributions"]) == 3


def test_a_server_that_was_saved_and_lost_comes_back_by_the_guides_commands(stack, collaboration, tmp_path):
    backup = {"BACKUP": str(tmp_path)}
    stack.shell(shell_block("operations.md", "With the compose file, into a folder"), **backup)
    stack.shell("docker compose --profile cpu down --volumes --timeout 5")
    printed = stack.shell(shell_block("operations.md", "With the compose file, in an empty project"), **backup)
    assert "0 failed" in printed
    initech = collaboration.desks[2]
    initech.gramfuse("model", "pull", collaboration.project, "first", "restored")
    assert initech.json("model", "verify", "restored")["receipt"]["contributions"]
    with collaboration.coordinator.client() as client:
        client.submit(collaboration.project, REGMEAN, job="third")
        assert client.wait(collaboration.project, "third").state == "succeeded"


def test_the_proxy_serves_the_same_with_a_certificate(stack, collaboration, tmp_path):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "privkey.pem", "-out", "fullchain.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        AssertionError, match=r"unhealthy|exited"
    ):  # rather than found well while it starts again and again
        stack.shell("docker compose --profile cpu --profile tls up --detach --wait", GRAMFUSE_TLS=str(empty))
    served = tmp_path / "tls"
    block = shell_block("deployment.md", "## TLS").replace("/etc/gramfuse/tls", str(served)).replace("sudo ", "")
    stack.shell(f"for file in fullchain.pem privkey.pem; do cp {tmp_path}/$file .; done\n{block}")
    acme = collaboration.coordinator
    login = ["gramfuse", "login", f"https://localhost:{stack.tls_port}", "--token", acme.token]
    home = {"GRAMFUSE_HOME": str(tmp_path / "home"), "GRAMFUSE_URL": "", "GRAMFUSE_TOKEN": ""}
    trusted = {"SSL_CERT_FILE": str(tmp_path / "fullchain.pem")}
    subprocess.run(login, env={**acme.environment, **home, **trusted}, check=True, capture_output=True)
    refused = subprocess.run(login, env={**acme.environment, **home}, capture_output=True, text=True, check=False)
    assert refused.returncode == 4
    assert "certificate" in refused.stderr


def test_prometheus_finds_api_and_workers_and_answers_every_panel_and_alert(stack, collaboration):
    """Grafana itself is not started: its image brings nothing that these files decide."""
    with (stack.folder / ".env").open("a") as settings:
        settings.write("GRAMFUSE_METRICS_PORT=9464\n")
    stack.shell(f"{UP} && docker compose up --detach prometheus")

    def targets() -> set[str]:
        found = queried(stack, "targets")["activeTargets"]
        return {target["labels"]["job"] for target in found if target["health"] == "up"}

    wait_until(lambda: targets() == {"gramfuse-api", "gramfuse-worker"}, seconds=90, what="both targets", pause=1)
    board = json.loads((stack.folder / "deploy/grafana/dashboards/gramfuse.json").read_text())
    panels = re.findall(r'"expr": ("(?:[^"\\]|\\.)*")', json.dumps(board))
    assert len(panels) > 20
    for panel in panels:
        queried(stack, "query", query=json.loads(panel).replace("$__rate_interval", "1m"))
    rules = [rule for group in queried(stack, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} > {"GramfuseNoWorker", "GramfuseApiGone"}
    for rule in rules:
        queried(stack, "query", query=rule["query"])


def test_with_the_profile_of_a_store_parts_and_models_pass_the_api_by(tmp_path_factory):
    """A server of its own: the bytes of another cannot move there."""
    with compose.composed(tmp_path_factory.mktemp("s3")) as stack:
        stack.shell(shell_block("deployment.md", "## With the compose file").splitlines()[0])
        with (stack.folder / ".env").open("a") as settings:
            settings.write(
                "GRAMFUSE_BLOBS=s3://gramfuse/blobs\nGRAMFUSE_S3_ACCESS_KEY=gramfuse\nGRAMFUSE_S3_SECRET_KEY=of-the-tests\n"
                f"GRAMFUSE_DIRECT_TRANSFERS=on\nGRAMFUSE_DIRECT_ENDPOINT=http://127.0.0.1:{stack.s3_port}\n"
            )
        stack.shell("docker compose --profile cpu --profile s3 up --build --detach --wait", timeout=1500)
        examined = stack.inside("api", "gramfuse-server", "doctor")
        assert re.search(r"^ok +direct transfers", examined, re.MULTILINE)
        acme, *others = (stack.desk(name, role="participant" if n else "coordinator") for n, name in enumerate("abc"))
        made = gather((acme, *others))
        contribute(made)
        with acme.client() as client:
            client.submit(made.project, REGMEAN, job="first")
            assert client.wait(made.project, "first").state == "succeeded"
        others[0].gramfuse("model", "pull", made.project, "first", "first")
        logged = stack.shell("docker compose logs api")
        put = [line for line in logged.splitlines() if "method=PUT" in line]
        assert any("/contributions/" in line for line in put)
        assert not any("/parts/" in line for line in put)
        for port in (9333, 8080, 8888):  # master, volumes and filer ask nobody who they are
            ask = f"import socket; socket.create_connection(('seaweedfs', {port}), timeout=3)"
            with pytest.raises(AssertionError, match="refused"):
                stack.inside("api", "python", "-c", ask)
