"""Rates: what is granted to whom, and when again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_server import rates
from gramfuse_server.rates import Rate, Remembered, subscriber


class Seconds:
    """A monotonic clock that stands still until it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_burst_is_granted_at_once_and_then_as_much_as_comes_back():
    seconds = Seconds()
    rate = Rate(per_second=2.0, burst=5.0, monotonic=seconds)
    assert [rate.take("acme") for _ in range(5)] == [0.0] * 5
    assert rate.take("acme") == pytest.approx(0.5)
    assert rate.take("globex") == 0.0
    seconds.now += 0.5
    assert rate.take("acme") == 0.0
    assert rate.take("acme") == pytest.approx(0.5)
    seconds.now += 1000
    assert [rate.take("acme") for _ in range(6)][-2:] == [0.0, pytest.approx(0.5)]


def test_looking_takes_nothing_and_who_has_to_wait_is_charged_nothing():
    seconds = Seconds()
    rate = Rate(per_second=1.0, burst=1.0, monotonic=seconds)
    assert [rate.wait("acme") for _ in range(9)] == [0.0] * 9
    assert rate.take("acme") == 0.0
    assert [rate.take("acme") for _ in range(9)] == [pytest.approx(1.0)] * 9


def test_what_costs_more_than_the_whole_burst_is_granted_to_who_has_it_whole():
    seconds = Seconds()
    rate = Rate(per_second=1.0, burst=4.0, monotonic=seconds)
    assert rate.take("acme", cost=10.0) == 0.0
    assert rate.take("acme") == pytest.approx(7.0)


def test_a_rate_of_nothing_is_no_limit():
    rate = Rate(per_second=0.0, burst=0.0, monotonic=Seconds())
    assert [rate.take("acme") for _ in range(99)] == [0.0] * 99


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0.5, 3)), max_size=40))
def test_no_time_is_long_enough_for_more_than_its_burst_and_what_came_back(asked):
    seconds = Seconds()
    rate = Rate(per_second=2.0, burst=6.0, monotonic=seconds)
    granted = []
    for pause, cost in asked:
        seconds.now += pause
        wait = rate.take("acme", cost=cost)
        if wait == 0:
            granted.append((seconds.now, cost))
        else:  # and what it was told is true
            assert rate.wait("acme", cost=cost) == wait
            seconds.now += wait + 1e-6
            assert rate.wait("acme", cost=cost) == 0
    for first in range(len(granted)):
        for last in range(first, len(granted)):
            taken = sum(cost for _, cost in granted[first : last + 1])
            assert taken <= 6.0 + 2.0 * (granted[last][0] - granted[first][0]) + 1e-3


def test_memory_is_bounded_and_the_one_who_asked_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(rates, "MOST_KEYS", 3)
    rate, known = Rate(per_second=1.0, burst=1.0, monotonic=Seconds()), Remembered(60.0, monotonic=Seconds())
    for name in ("a", "b", "c", "d"):
        assert rate.take(name) == 0.0
        known.add(name)
    assert (rate.take("a"), rate.wait("d")) == (0.0, pytest.approx(1.0))
    assert ("a" in known, "d" in known) == (False, True)


def test_who_was_not_seen_for_a_while_is_not_known_any_more():
    seconds = Seconds()
    known = Remembered(60.0, monotonic=seconds)
    known.add("a")
    seconds.now += 60
    assert "a" in known
    seconds.now += 1
    assert "a" not in known


@pytest.mark.parametrize(
    ("address", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        (None, "", True),
    ],
)
def test_of_an_address_the_part_counts_that_its_owner_cannot_choose(address, other, same):
    assert (subscriber(address) == subscriber(other)) == same
