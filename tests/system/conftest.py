"""Fixtures of the system suite: databases, deployments, a project with pushed contributions."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.deployment import Deployment, deployed
from support.postgres import CreateDatabase, postgres

DeployFunction = Callable[..., Deployment]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[CreateDatabase]:
    with postgres() as create:
        yield create


@pytest.fixture(params=["sqlite", "postgresql"])
def deploy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeployFunction]:
    """Deploy servers on the database of this run; settings are given by name, e.g. shard_bytes="4096"."""
    numbers = itertools.count(1)
    with ExitStack() as running:

        def start(**settings: str) -> Deployment:
            url = None if request.param == "sqlite" else request.getfixturevalue("postgres_server")()
            return running.enter_context(deployed(tmp_path / f"deployment{next(numbers)}", url, **settings))

        yield start
