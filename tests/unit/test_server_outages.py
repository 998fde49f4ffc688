"""A database that is away is told in one line for each cause, once a minute, whoever meets it."""

import itertools
import logging
import sqlite3

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from gramfuse_server import outages
from gramfuse_server.outages import EngineOutages, Repeats
from support.log_lines import logs, parsed

AWAY = psycopg.OperationalError("connection failed: Connection refused\n\tIs the server running?")
POLLING = """\
Exception polling schedules: Traceback (most recent call last):
  File "database.py", line 238, in _connect
    return dialect.connect(*arguments, **options)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
psycopg.OperationalError: failed to resolve host 'postgres'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "engine.py", line 1
sqlalchemy.exc.OperationalError: (psycopg.errors.X) failed to resolve host 'postgres'
(Background on this error at: https://sqlalche.me/e/21/e3q8)
"""


def test_the_first_line_of_a_kind_is_due_and_then_one_each_minute_that_says_how_many_were_left_out():
    times = iter([0.0, 0.0, 1.0, 2.0, 59.0, 60.0, 120.0])
    repeats = Repeats(monotonic=lambda: next(times))
    assert (repeats.due("beat"), repeats.due("sweep")) == (0, 0)
    assert [repeats.due("beat") for _ in range(3)] == [None] * 3
    assert [repeats.due("beat") for _ in range(2)] == [3, 0]


def test_after_its_end_a_kind_is_due_again_at_once():
    repeats = Repeats(monotonic=lambda: 0.0)
    assert not repeats.over("beat")
    repeats.due("beat")
    repeats.due("beat")
    assert repeats.over("beat")
    assert not repeats.over("beat")
    assert repeats.due("beat") == 0


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_the_engines_threads_say_of_an_outage_is_one_line_a_minute(form):
    engine = logging.getLogger("dbos")
    with logs(form) as written:
        clock = itertools.count(step=10.0)
        engine.filters = [EngineOutages(Repeats(monotonic=lambda: next(clock)))]
        for _ in range(7):
            engine.warning(POLLING)
    first, second = written.getvalue().splitlines()
    for line in (first, second):
        assert "the job engine waits for the database: Exception polling schedules:" in line
        assert "failed to resolve host 'postgres'" in line
        assert "sqlalche.me" not in line
        assert "Traceback" not in line
    assert "5 lines like this were left out" in second


def fail_and_log(error, message):
    try:
        raise error
    except type(error):
        logging.getLogger("dbos").exception(message)


def test_an_outage_that_comes_with_its_traceback_is_one_line_too():
    with logs() as written:
        fail_and_log(OperationalError("SELECT 1", {}, AWAY), "Fallback poll failed")
    (line,) = parsed(written.getvalue())
    assert "exception" not in line
    assert "Fallback poll failed: (psycopg.OperationalError) connection failed: Connection refused" in line["event"]


def test_whatever_else_the_engine_says_stays_as_it_is():
    with logs() as written:
        for _ in range(2):
            logging.getLogger("dbos").warning("a workflow has other steps than before")
        fail_and_log(RuntimeError("a bug"), "background workflow")
    lines = parsed(written.getvalue())
    assert [line["event"] for line in lines] == [*["a workflow has other steps than before"] * 2, "background workflow"]
    assert "a bug" in lines[-1]["exception"]


def test_the_drivers_words_are_told_in_one_line_without_the_statement():
    told = outages.describe(OperationalError("SELECT secret", {"secret": 1}, AWAY))
    assert told == "connection failed: Connection refused Is the server running?"
    assert (
        outages.describe(OperationalError("X", {}, sqlite3.OperationalError("database is locked")))
        == "database is locked"
    )


def test_logs_configured_twice_have_one_filter():
    with logs(), logs():
        assert len(logging.getLogger("dbos").filters) == 1
