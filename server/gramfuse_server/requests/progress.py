"""Decide how far a request is. Pure: what is there and what time it is in, a state out.

No state is stored, so nothing has to happen at the deadline and no crash can come in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import AnswerState, RequestState


@dataclass(frozen=True, slots=True)
class Progress:
    """A request's state, with the reason where it is not plain."""

    state: RequestState
    reason: str | None = None


def progress_of(
    answers: Mapping[str, AnswerState],
    *,
    deadline: datetime,
    cancelled: bool,
    now: datetime,
    policy: Policy,
    fewest: int,
) -> Progress:
    """Decide a request's state from its answers by organization; with `fewest` of them it may go on without the others.

    What was sealed before the deadline counts once a worker accepted it, so a request stays open while one waits for
    that.
    """
    if cancelled:
        return Progress("cancelled")
    accepted = [name for name, state in answers.items() if state == "accepted"]
    if len(accepted) == len(answers):
        return Progress("complete")
    if now < deadline or "sealed" in answers.values():
        return Progress("open")
    missing = ", ".join(sorted(answers.keys() - set(accepted)))
    if policy.missed_deadline == "leave_out" and len(accepted) >= fewest:
        return Progress("complete", f"without {missing}, who missed the deadline")
    few = "" if policy.missed_deadline == "fail" else f"; {len(accepted)} answers are fewer than {fewest}"
    return Progress("failed", f"{missing} missed the deadline{few}")
