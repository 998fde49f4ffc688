"""`gramfuse-server worker-health`, which a container's health check runs."""

import socket
from datetime import timedelta

import pytest
import typer

from gramfuse_server import heartbeats
from gramfuse_server.clock import system_clock
from gramfuse_server.database import open_database, transaction
from gramfuse_server.doctor.worker_health import PATIENCE, worker_health

LEASE = timedelta(seconds=5)
one_database = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # one plain query


@pytest.fixture
def note(new_database_url, monkeypatch):
    """Notes a worker that gave its last sign of life so long ago."""
    url = new_database_url()
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", url.get_secret_value())
    database = open_database(url)

    def enter(name: str, ago: timedelta, *, host: str = socket.gethostname(), left: bool = False) -> None:
        now = system_clock() - ago
        with transaction(database) as session:
            heartbeats.enter(session, name, heartbeats.Host(host, "cpu", 1, "0.1.0"), now)
            if left:
                heartbeats.leave(session, name, now)

    yield enter
    database.close()


@one_database
def test_a_worker_of_this_host_that_gives_signs_of_life_is_well(note, capsys):
    note("dead-1", LEASE * PATIENCE * 2)
    note("alive-1", LEASE)
    worker_health()
    assert capsys.readouterr().out == "alive-1\n"


@one_database
@pytest.mark.parametrize("case", ["none", "late", "left", "elsewhere"])
def test_a_host_whose_worker_is_gone_late_or_elsewhere_is_ill(note, capsys, case):
    match case:
        case "late":
            note("late-1", LEASE * PATIENCE + timedelta(seconds=1))
        case "left":
            note("left-1", timedelta(), left=True)
        case "elsewhere":
            note("other-1", timedelta(), host="another.example.org")
    with pytest.raises(typer.Exit) as ended:
        worker_health()
    assert ended.value.exit_code == 1
    assert "no worker on" in capsys.readouterr().err
