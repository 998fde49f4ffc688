"""Who is dead, without comparing two machines' clocks."""

from datetime import UTC, datetime, timedelta

from gramfuse_server.heartbeats import Watch

AT = datetime(2026, 3, 1, tzinfo=UTC)
LEASE = timedelta(seconds=5)


def test_a_heartbeat_that_stands_still_for_the_lease_is_death():
    watch = Watch(LEASE)
    looks = [watch.dead({"w": AT}, 100.0 + second) for second in range(6)]
    assert looks == [[], [], [], [], [], ["w"]]


def test_a_heartbeat_that_changes_is_life_however_wrong_its_clock_is():
    watch = Watch(LEASE)
    for second in range(60):
        assert watch.dead({"w": AT - timedelta(days=365) + timedelta(seconds=second)}, 100.0 + second) == []


def test_a_worker_that_left_or_is_not_known_is_dead_at_once():
    assert Watch(LEASE).dead({"w": None}, 100.0) == ["w"]


def test_a_worker_that_was_not_looked_at_for_long_gets_a_fresh_lease():
    watch = Watch(LEASE)
    assert watch.dead({"w": AT}, 100.0) == []
    assert watch.dead({}, 101.0) == []
    assert watch.dead({"w": AT}, 200.0) == []


def test_after_a_pause_of_the_observer_everybody_has_the_lease_again():
    watch = Watch(LEASE)
    assert [watch.dead({"w": AT}, 100.0 + second) for second in range(4)] == [[], [], [], []]
    # it stood still itself, or the database was away
    assert [watch.dead({"w": AT}, 160.0 + second) for second in range(5)] == [[], [], [], [], []]
    assert watch.dead({"w": AT}, 165.0) == ["w"]


def test_a_clock_that_is_set_back_or_forward_by_an_hour_kills_nobody():
    watch = Watch(LEASE)
    for second in range(60):
        step = timedelta(hours=(0, -1, 1)[second // 20])
        assert watch.dead({"w": AT + step + timedelta(seconds=second)}, 100.0 + second) == []
