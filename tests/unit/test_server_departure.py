"""A worker that was told to stop ends without its database, if that stays away; one that may go on waits for it."""

import itertools
import threading

import pytest
from pydantic import SecretStr

from gramfuse_server.database import open_database
from gramfuse_server.departure import Departure
from support.log_lines import logs, parsed


@pytest.fixture
def away():
    database = open_database(SecretStr("postgresql://127.0.0.1:1/nobody-listens"))
    yield database
    database.close()


@pytest.fixture
def there(tmp_path):
    database = open_database(SecretStr(f"sqlite:///{tmp_path}/there.sqlite"), create=True)
    yield database
    database.close()


def watching(database):
    """A watch whose clock goes on by ten seconds at each look, and whom it gave up."""
    abandoned, ticks = [], itertools.count(step=10)
    departure = Departure(
        database, "w1", abandon=lambda: abandoned.append("w1"), monotonic=lambda: float(next(ticks)), pause_seconds=0.0
    )
    stopping, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=departure.watch, args=(stopping, ended))
    return abandoned, thread, stopping, ended


def test_a_worker_that_may_go_on_is_not_given_up_however_long_the_database_is_away(away):
    abandoned, thread, stopping, ended = watching(away)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert abandoned == []
    ended.set()
    stopping.set()
    thread.join(10)
    assert abandoned == []


def test_a_worker_that_is_to_stop_is_given_up_once_the_database_was_away_for_long(away):
    abandoned, thread, stopping, _ = watching(away)
    with logs() as written:
        stopping.set()
        thread.start()
        thread.join(10)
    assert abandoned == ["w1"]
    (line,) = parsed(written.getvalue())
    assert (line["event"], line["worker"]) == ("stops without the database; others take its work over", "w1")


def test_a_worker_that_is_to_stop_has_all_the_time_that_its_shard_takes_while_the_database_answers(there):
    abandoned, thread, stopping, ended = watching(there)
    stopping.set()
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    ended.set()
    thread.join(10)
    assert abandoned == []


def test_what_is_within_ends_the_watch_also_by_an_error(away):
    stopping = threading.Event()
    departure = Departure(away, "w1", abandon=lambda: pytest.fail("it had ended"), away_seconds=0.0, pause_seconds=0.1)
    with pytest.raises(RuntimeError), departure.watched(stopping):
        raise RuntimeError("within")
    (watch,) = [thread for thread in threading.enumerate() if thread.name == "departure"]
    stopping.set()
    watch.join(10)
    assert not watch.is_alive()
