"""The compose file in a real engine: a clone of this repository, in which the guides' own shell blocks are run."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.checkout import REPOSITORY, clone
from support.deployment import HOST, Desk

OVERRIDE = "docker-compose.test.yml"
# Under names of its own, so that images and ports of a server on this machine stay what they are.
PORTS_AND_IMAGES = """\
services:
  migrate: {{image: "gramfuse-api:test"}}
  api: {{image: "gramfuse-api:test"}}
  worker-cpu:
    image: gramfuse-worker:test
    build: {{args: {{TORCH_INDEX_URL: "{torch}"}}}}
  proxy: {{ports: !override ["127.0.0.1:{tls}:8443"]}}
  seaweedfs: {{ports: !override ["127.0.0.1:{s3}:8333"]}}
"""
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def missing() -> str:
    """Why no container can be started here, or nothing."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode:
            return f"{' '.join(command)}: {asked.stderr.strip()[-200:]}"
    return ""


def shell_block(document: str, after: str) -> str:
    """The first shell block of a guide behind some words."""
    text = (REPOSITORY / "docs" / document).read_text(encoding="utf-8")
    found = re.search(r"^```sh\n(.*?)^```", text[text.index(after) :], flags=re.MULTILINE | re.DOTALL)
    assert found, (document, after)
    return found[1]


@dataclass(frozen=True)
class Stack:
    """A compose project in a clone of its own."""

    folder: Path
    environment: Mapping[str, str]
    port: int
    tls_port: int
    s3_port: int

    @property
    def project(self) -> str:
        return self.environment["COMPOSE_PROJECT_NAME"]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def shell(self, script: str, *, timeout: float = 600, **variables: str) -> str:
        """Run lines of a guide, all of which must succeed; return what they print."""
        finished = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder, env={**self.environment, **variables}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, f"{script}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}"
        return finished.stdout

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        words = ["docker", "compose", "exec", "-T", service, *command]
        finished = subprocess.run(
            words, cwd=self.folder, env=dict(self.environment), capture_output=True, text=True, timeout=120, check=False
        )
        assert finished.returncode == 0, f"{words}: {finished.stdout}\n{finished.stderr}"
        return finished.stdout

    def state(self, service: str, template: str) -> str:
        """A field of `docker inspect`."""
        return self.shell(f"docker inspect --format '{template}' $(docker compose ps --all --quiet {service})").strip()

    def desk(self, name: str, *, role: str = "participant") -> Desk:
        """An organization with a token, made by the operator's command."""
        self.inside("api", "gramfuse-server", "org", "create", name)
        token = self.inside("api", "gramfuse-server", "token", "create", "--org", name, "--role", role).strip()
        folder = self.folder.parent / name
        folder.mkdir()
        return Desk(name, folder, self.url, token)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((HOST, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def composed(folder: Path) -> Iterator[Stack]:
    """A project without containers yet; in the end all of its containers and volumes are removed."""
    checkout = clone(folder / "gramfuse")
    port, tls_port, s3_port = _free_ports(3)
    torch = os.environ.get("TORCH_INDEX_URL", TORCH_INDEX)
    (checkout / OVERRIDE).write_text(PORTS_AND_IMAGES.format(tls=tls_port, s3=s3_port, torch=torch))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GRAMFUSE_", "COMPOSE_"))}
    project = {
        "COMPOSE_PROJECT_NAME": f"gramfuse-test-{os.getpid()}-{folder.name.lower()}",
        "COMPOSE_FILE": f"docker-compose.yml:{OVERRIDE}",
        "GRAMFUSE_PORT": str(port),
    }
    stack = Stack(checkout, {**inherited, **project}, port, tls_port, s3_port)
    try:
        yield stack
    finally:
        if (checkout / ".env").exists():
            stack.shell("docker compose --profile '*' down --volumes --remove-orphans --timeout 5")
