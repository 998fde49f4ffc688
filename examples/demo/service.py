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
class Service:
    """A running API and worker, and the operator's shell beside them."""

    operator: Shell
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
    operator = Shell("operator", folder, {**environment, "GRAMFUSE_SERVER_HOME": str(folder)})
    processes.read(Command(operator, ["gramfuse-server", "init"], logs / "operator.log"))
    api_log, worker_log, port_file = logs / "api.log", logs / "worker.log", folder / "port"
    serve = ["gramfuse-server", "serve", "--host", HOST, "--port", "0", "--port-file", port_file.name]
    api = processes.start(operator, serve, log=api_log, inherited=[lock])
    worker = processes.start(operator, ["gramfuse-server", "worker"], log=worker_log, inherited=[lock])
    deadline = time.monotonic() + START_SECONDS
    while not (port_file.exists() and _is_ready(int(port_file.read_text(encoding="ascii")))):
        require_running(api, log=api_log)
        require_running(worker, log=worker_log)
        if time.monotonic() > deadline:
            msg = f"the API does not answer after {START_SECONDS:.0f} s; see {api_log}"
            raise TimeoutError(msg)
        time.sleep(0.1)
    return Service(operator, int(port_file.read_text(encoding="ascii")), api, worker)


def create_token(processes: Processes, service: Service, organization: str, role: str, *, log: Path) -> str:
    """Create an organization and a token for it, as the operator does; the token is shown to nobody else."""
    processes.run(Command(service.operator, ["gramfuse-server", "org", "create", organization], log))
    create = ["gramfuse-server", "token", "create", "--org", organization, "--role", role]
    return processes.read(Command(service.operator, create, log)).strip()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
