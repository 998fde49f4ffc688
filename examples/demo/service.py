"""The merge service on loopback: an API and one worker as real processes, SQLite, blobs in a local folder."""

import http.client
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processes import Command, Processes, Shell, require_running

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Operator:
    """Who runs the server, by commands at its shell."""

    shell: Shell
    log: Path

    def command(self, *arguments: str) -> Command:
        """A command of the server's."""
        return Command(self.shell, ["gramfuse-server", *arguments], self.log)

    def creating_organizations(self, *names: str) -> Command:
        """Make tenants."""
        return self.command("org", "create", *names)

    def creating_token(self, organization: str, role: str) -> Command:
        """Make a token; its standard output is the secret, which nobody sees again."""
        return self.command("token", "create", "--org", organization, "--role", role)


@dataclass(frozen=True, slots=True)
class Service:
    """A running API and worker, and their operator."""

    operator: Operator
    port: int
    api: subprocess.Popen[str]
    worker: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """The address that clients sign in to."""
        return f"http://{HOST}:{self.port}"


def start_service(
    processes: Processes, folder: Path, logs: Path, environment: Mapping[str, str], *, lock: int
) -> Service:
    """Initialize a server in an empty folder, start its processes, and wait until the API answers.

    Both inherit the lock on the demo's folder, so that it is held for as long as one of them lives.
    """
    folder.mkdir()
    shell = Shell("operator", folder, {**environment, "GRAMFUSE_SERVER_HOME": str(folder)})
    operator, port_file = Operator(shell, logs / "operator.log"), folder / "port"
    processes.read(operator.command("init"))  # it would print the operator's token
    serve = ["gramfuse-server", "serve", "--host", HOST, "--port", "0", "--port-file", port_file.name]
    commands = (
        Command(shell, serve, logs / "api.log"),
        Command(shell, ["gramfuse-server", "worker"], logs / "worker.log"),
    )
    started = [(processes.start(command, inherited=[lock]), command.log) for command in commands]
    deadline = time.monotonic() + START_SECONDS
    while not (port_file.exists() and _is_ready(int(port_file.read_text(encoding="ascii")))):
        for process, log in started:
            require_running(process, log=log)
        if time.monotonic() > deadline:
            msg = f"the API does not answer after {START_SECONDS:.0f} s; see {logs}"
            raise TimeoutError(msg)
        time.sleep(0.1)
    (api, _), (worker, _) = started
    return Service(operator, int(port_file.read_text(encoding="ascii")), api, worker)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
