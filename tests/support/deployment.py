"""A server and its clients as real processes: what an operator and the organizations would start.

Where the database is no file and this machine lets one do so, API and workers see a read-only file system: blobs,
scratch and a folder for the moment are all that they can write to, as in the compose file's containers.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gramfuse import Client
from support import guard, read_only

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent
START_SECONDS = 60.0


def clean_environment(**additions: str) -> dict[str, str]:
    """This process's environment without gramfuse's variables, this Python's programs first."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAMFUSE_")}
    path = os.pathsep.join([str(BIN), inherited.get("PATH", os.defpath)])
    return inherited | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"} | additions


def wait_until(condition: Callable[[], Any], *, seconds: float, what: str, pause: float = 0.02) -> Any:
    """Return the condition's first true value; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(pause)
    return value


@dataclass
class Desk:
    """One organization at its own machine: a folder, a home, and the command line."""

    name: str
    folder: Path
    url: str
    token: str

    @property
    def environment(self) -> dict[str, str]:
        signed_in = {"GRAMFUSE_URL": self.url, "GRAMFUSE_TOKEN": self.token} if self.token else {}
        return clean_environment(GRAMFUSE_HOME=str(self.folder / "home"), **signed_in)

    def client(self) -> Client:
        """The same organization in Python, in this process."""
        return Client(self.url, self.token, home=self.folder / "home")

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `gramfuse …` to its end, whatever its exit code."""
        return subprocess.run(
            ["gramfuse", *arguments],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def gramfuse(self, *arguments: str) -> str:
        """Run `gramfuse …`, which must succeed; return its standard output."""
        finished = self.run(*arguments)
        assert finished.returncode == 0, f"gramfuse {' '.join(arguments)}: {finished.returncode}\n{finished.stderr}"
        return finished.stdout

    def json(self, *arguments: str) -> Any:
        """Run `gramfuse … --format json`, which must succeed; return the result."""
        return json.loads(self.gramfuse(*arguments, "--format", "json"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `gramfuse …` and return at once."""
        return subprocess.Popen(
            ["gramfuse", *arguments],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def get(self, path: str) -> Any:
        """GET a JSON document with this organization's token, or None where there is none (404)."""
        return call(self.url, "GET", path, self.token)


def call(url: str, method: str, path: str, token: str, document: Any = None) -> Any:
    """Send a request, past gramfuse's own client; return the JSON answer, or None for a 404."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = None if document is None else json.dumps(document)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=30)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.read()
    if response.status == http.client.NOT_FOUND:
        return None
    assert response.status < http.client.MULTIPLE_CHOICES, answer
    return json.loads(answer)


@dataclass
class Deployment:
    """A server's home, database and processes."""

    folder: Path
    database_url: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    operator_token: str = ""
    launcher: tuple[str, ...] = ()
    api: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        database = {} if self.database_url is None else {"GRAMFUSE_DATABASE_URL": self.database_url}
        settings = {f"GRAMFUSE_{name.upper()}": value for name, value in self.settings.items()}
        moment = self.folder / "moment"
        places = {"TMPDIR": str(moment), "MPLCONFIGDIR": str(moment / "matplotlib")}
        home = str(self.folder / "server")
        return clean_environment(GRAMFUSE_SERVER_HOME=home, **places, **database, **settings)

    def operator(self, *arguments: str) -> str:
        """Run `gramfuse-server …`, which must succeed; return its standard output."""
        finished = subprocess.run(
            ["gramfuse-server", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def as_operator(self, method: str, path: str, document: Any = None) -> Any:
        """Send a request with the operator's token; return the JSON answer, or None for a 404."""
        return call(self.url, method, path, self.operator_token, document)

    def start_api(self) -> None:
        """Start the API, on the port of the time before if there was one, and wait until it answers."""
        port_file = self.folder / "moment" / "port"
        port_file.unlink(missing_ok=True)
        self.api = self._start("serve", "--port", str(self.port), "--port-file", str(port_file))

        def answers() -> bool:
            assert self.api is not None
            assert self.api.poll() is None, self.log_text("serve")
            if not port_file.exists():
                return False
            self.port = int(port_file.read_text())
            return self._is_ready()

        wait_until(answers, seconds=START_SECONDS, what="the API's start")

    def start_worker(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start a worker, with settings of its own if need be; it announces itself when it is ready."""
        worker = self._start("worker", **{f"GRAMFUSE_{name.upper()}": value for name, value in settings.items()})
        self.workers.append(worker)
        return worker

    def kill_api(self) -> None:
        """SIGKILL: nothing is cleaned up, nothing answered."""
        assert self.api is not None
        kill(self.api)

    def log_text(self, command: str) -> str:
        """What the processes of a command wrote."""
        return (self.folder / f"{command}.log").read_text(errors="replace")

    def desk(self, name: str, *, role: str = "participant", url: str | None = None) -> Desk:
        """Create an organization with a token, at a new desk; its clients go to another URL if one is given."""
        self.as_operator("PUT", f"/v1/organizations/{name}")
        token = self.as_operator("POST", "/v1/tokens", {"organization": name, "role": role})["token"]
        return self.new_desk(name, url=url or self.url, token=token)

    def new_desk(self, name: str, *, url: str, token: str = "") -> Desk:
        """Set up a desk; without a token here, its user has to sign in."""
        folder = self.folder / name
        folder.mkdir()
        return Desk(name, folder, url, token)

    def require_running(self) -> None:
        """Start again what a test killed: the API, and one worker."""
        if self.api is None or self.api.poll() is not None:
            self.start_api()
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for spare in self.workers[1:]:
            kill(spare)
        if not self.workers:
            self.start_worker()

    def stop(self) -> None:
        """Stop everything, workers first."""
        for process in [*self.workers, *([self.api] if self.api else [])]:
            process.terminate()
        for process in [*self.workers, *([self.api] if self.api else [])]:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                kill(process)
            guard.forget(process.pid)

    def _start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.launcher, "gramfuse-server", *arguments],
                cwd=self.folder, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        guard.watch(process.pid)
        return process

    def _is_ready(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=5)) as connection:
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == http.client.OK
            except OSError:
                return False


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL a process and wait for its end."""
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    guard.forget(process.pid)


@contextlib.contextmanager
def paused(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Have a process stand still meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def deployed(folder: Path, database_url: str | None = None, **settings: str) -> Iterator[Deployment]:
    """Initialize a server and start its API; stop whatever runs in the end."""
    writable = [folder / "server" / "blobs", folder / "server" / "scratch", folder / "moment"]
    for each in writable:
        each.mkdir(parents=True, exist_ok=True)
    deployment = Deployment(folder, database_url, settings)
    if database_url is not None and read_only.is_possible(folder / "moment"):
        deployment.launcher = read_only.launcher(*writable)
    try:
        printed = deployment.operator("init")
        deployment.operator_token = next(line for line in printed.splitlines() if line.startswith("operator")).split()[
            1
        ]
        deployment.start_api()
        yield deployment
    finally:
        deployment.stop()
