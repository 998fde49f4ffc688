"""When a request is complete: by its answers, the deadline, and what the policy says of who misses it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_server.requests.progress import Progress, progress_of
from gramfuse_shared.contract.policy import Policy

DEADLINE = datetime(2026, 3, 1, tzinfo=UTC)
BEFORE, AFTER = DEADLINE - timedelta(seconds=1), DEADLINE
FAIL = Policy()
LEAVE_OUT = Policy(missed_deadline="leave_out")

UNFINISHED = ("awaited", "open", "rejected", "expired", "withdrawn")
STATES = (*UNFINISHED, "sealed", "accepted")
answers = st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from(STATES), min_size=1)


def progress(states, *, now=BEFORE, policy=FAIL, cancelled=False) -> Progress:
    named = dict(zip("abcdefg", states, strict=False)) if isinstance(states, tuple) else states
    return progress_of(named, deadline=DEADLINE, cancelled=cancelled, now=now, policy=policy, fewest=3)


@pytest.mark.parametrize("now", [BEFORE, AFTER])
@pytest.mark.parametrize("policy", [FAIL, LEAVE_OUT])
def test_once_everybody_answered_it_is_complete_whatever_the_time(now, policy):
    assert progress(("accepted", "accepted"), now=now, policy=policy) == Progress("complete")


@pytest.mark.parametrize("state", UNFINISHED)
def test_before_the_deadline_it_waits_for_everybody(state):
    assert progress(("accepted", "accepted", "accepted", state)).state == "open"


@pytest.mark.parametrize("state", UNFINISHED)
def test_at_the_deadline_it_fails_where_the_policy_waits_for_all(state):
    found = progress(("accepted", "accepted", "accepted", state), now=AFTER)
    assert found == Progress("failed", "d missed the deadline")


@pytest.mark.parametrize("state", UNFINISHED)
def test_at_the_deadline_it_goes_on_without_the_others_where_the_policy_leaves_them_out(state):
    found = progress(("accepted", "accepted", "accepted", state), now=AFTER, policy=LEAVE_OUT)
    assert found == Progress("complete", "without d, who missed the deadline")


def test_fewer_answers_than_the_smallest_cohort_are_not_enough_to_go_on():
    found = progress(("accepted", "accepted", "awaited"), now=AFTER, policy=LEAVE_OUT)
    assert found.state == "failed"
    assert "2 answers are fewer than 3" in found.reason


@pytest.mark.parametrize("policy", [FAIL, LEAVE_OUT])
def test_an_answer_sealed_in_time_is_waited_for_while_it_is_checked(policy):
    assert progress(("accepted", "accepted", "accepted", "sealed"), now=AFTER, policy=policy).state == "open"


@given(answers, st.booleans(), st.sampled_from([FAIL, LEAVE_OUT]))
def test_cancelled_is_cancelled(states, late, policy):
    assert progress(states, now=AFTER if late else BEFORE, policy=policy, cancelled=True).state == "cancelled"


@given(answers, st.sampled_from([FAIL, LEAVE_OUT]))
def test_after_the_deadline_it_is_open_only_while_an_answer_is_being_checked(states, policy):
    found = progress(states, now=AFTER, policy=policy)
    assert (found.state == "open") == ("sealed" in states.values() and set(states.values()) != {"accepted"})


@given(answers, st.sampled_from(sorted("abcdefg")), st.sampled_from([FAIL, LEAVE_OUT]))
def test_one_more_accepted_answer_never_makes_a_complete_request_incomplete(states, name, policy):
    if progress(states, now=AFTER, policy=policy).state == "complete" and name in states:
        assert progress(states | {name: "accepted"}, now=AFTER, policy=policy).state == "complete"
