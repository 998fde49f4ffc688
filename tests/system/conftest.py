"""Fixtures of the system suite: deployments on both databases, each started once and used by many tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gramfuse_shared.limits import MIB
from support.deployment import Deployment, deployed
from support.postgres import Postgres, postgres
from support.scheduling import DATABASES, ByDatabase

# A merge of a few megabytes is many tasks, an upload many parts, and a dead worker is noticed soon.
SETTINGS = {"shard_bytes": str(MIB), "part_bytes": str(MIB), "worker_lease": "PT2S"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n 2, each process starts its own database's deployment, and no other's."""
    return ByDatabase(config, log)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """The server of the deployment on PostgreSQL."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def deployment_on(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Deployment]]:
    """Gives the running deployment on a kind of database, started by whoever asks first."""
    running: dict[str, Deployment] = {}
    with ExitStack() as stack:

        def obtain(kind: str) -> Deployment:
            if kind not in running:
                url = None if kind == "sqlite" else request.getfixturevalue("postgres_server")()
                running[kind] = stack.enter_context(deployed(tmp_path_factory.mktemp(kind), url, **SETTINGS))
            return running[kind]

        yield obtain


@pytest.fixture(params=DATABASES)
def deployment(request: pytest.FixtureRequest, deployment_on: Callable[[str], Deployment]) -> Deployment:
    """A server with its API and one worker; what an earlier test killed runs again."""
    found = deployment_on(request.param)
    found.require_running()
    return found
