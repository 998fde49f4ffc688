"""What is waited for and done again: a database that is away, a disk that is full, workflows that went missing."""

import sqlite3
import threading

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from gramfuse_server import patience
from gramfuse_server.database import is_full, is_outage
from gramfuse_server.patience import Patience, WorkerStopsError
from gramfuse_server.underway import Underway
from gramfuse_shared.errors import StorageFullError


def sqlite(name: str) -> OperationalError:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorname = name
    return OperationalError("SELECT 1", {}, error)


def postgresql(error: psycopg.Error, kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    return kind("SELECT 1", {}, error)


@pytest.mark.parametrize(
    "error",
    [
        NoConnectionError("no connection became free"),
        sqlite("SQLITE_BUSY"),
        sqlite("SQLITE_BUSY_SNAPSHOT"),
        sqlite("SQLITE_IOERR_FSYNC"),
        sqlite("SQLITE_FULL"),
        postgresql(psycopg.OperationalError("connection refused")),
        postgresql(psycopg.errors.SqlclientUnableToEstablishSqlconnection("unknown host")),
        postgresql(psycopg.errors.AdminShutdown("terminating connection")),
        postgresql(psycopg.errors.CannotConnectNow("the database system is starting up")),
        postgresql(psycopg.errors.DiskFull("no space left on device")),
        postgresql(psycopg.errors.DeadlockDetected("deadlock detected")),
        postgresql(psycopg.errors.IdleInTransactionSessionTimeout("terminating connection"), DBAPIError),
    ],
    ids=lambda error: str(getattr(error, "orig", error)),
)
def test_a_database_that_is_away_locked_or_full_is_an_outage(error):
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        sqlite("SQLITE_ERROR"),
        sqlite("SQLITE_CORRUPT"),
        postgresql(psycopg.errors.UndefinedTable("no such table"), ProgrammingError),
        postgresql(psycopg.errors.UniqueViolation("duplicate key"), IntegrityError),
        postgresql(psycopg.errors.QueryCanceled("statement timeout")),
        ValueError("a bug"),
    ],
    ids=lambda error: str(getattr(error, "orig", error)),
)
def test_a_bug_is_no_outage(error):
    assert not is_outage(error)


def test_a_full_disk_is_told_from_other_outages():
    assert is_full(sqlite("SQLITE_FULL"))
    assert is_full(postgresql(psycopg.errors.DiskFull("no space left on device")))
    assert not is_full(sqlite("SQLITE_BUSY"))
    assert not is_full(StorageFullError("the store's, not the database's"))


def failing(*errors: Exception):
    """Work that fails with each of these, then succeeds."""
    left = list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(patience, "ROOM_PAUSE_SECONDS", 0.001)


def test_work_begins_again_until_the_database_answers():
    assert Patience()(failing(sqlite("SQLITE_BUSY"), NoConnectionError("none free"))) == "done"


def test_an_inspection_begins_again_until_there_is_room():
    assert Patience().for_room(failing(StorageFullError("full"), StorageFullError("full"))) == "done"


def test_whatever_else_goes_wrong_goes_wrong_at_once():
    for wait, error in ((Patience(), sqlite("SQLITE_CORRUPT")), (Patience().for_room, ValueError("a bug"))):
        with pytest.raises(type(error)) as raised:
            wait(failing(error))
        assert raised.value is error


def test_a_worker_that_is_to_end_waits_for_nothing():
    stopping = threading.Event()
    stopping.set()
    for wait, error in (
        (Patience(stopping), sqlite("SQLITE_BUSY")),
        (Patience(stopping).for_room, StorageFullError("x")),
    ):
        with pytest.raises(WorkerStopsError):
            wait(failing(error))


def test_a_claimed_workflow_that_nobody_carries_out_for_ten_seconds_is_lost():
    underway = Underway()
    with underway.carrying_out("a"), underway.carrying_out("b"):
        assert underway.lost({"a", "b"}, 0.0) == []
    with underway.carrying_out("b"):
        assert underway.lost({"a", "b"}, 1.0) == []
        assert underway.lost({"a", "b"}, 10.9) == []
        assert underway.lost({"a", "b"}, 11.0) == ["a"]
        assert underway.lost({"a", "b"}, 12.0) == []  # told once


def test_a_workflow_that_came_back_while_its_first_thread_still_ends_is_not_lost():
    underway = Underway()
    with underway.carrying_out("a"):
        with underway.carrying_out("a"):
            pass
        assert underway.lost({"a"}, 0.0) == underway.lost({"a"}, 100.0) == []


def test_a_workflow_that_was_missing_now_and_then_is_not_lost():
    underway = Underway()
    assert underway.lost({"a"}, 0.0) == []
    assert underway.lost(set(), 5.0) == []
    assert underway.lost({"a"}, 10.0) == []
