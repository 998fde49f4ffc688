"""Decide whether a merged model is released, from its policy and what evaluations say. Pure; nothing of it is stored.

The policy is the one under which the model was merged: who contributed accepted its gate, and no later version opens
it.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, Literal

from pydantic import Field

from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.metrics import LOWER_IS_BETTER
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.contract.requests import EVALUATION_KINDS, Asked, ModelScore, RequestInfo
from gramfuse_shared.identifiers import JobId

ReleaseState = Literal["candidate", "released"]

_ROUNDING: Final = 1e-9
"""0.6 − 0.58 is a little more than 0.02 in doubles, and no reason to hold a model back."""


class ModelRelease(Document):
    """How a model stands to its policy's gate.

    Attributes:
        state: `candidate` until a complete evaluation passes the gate; from then on `released`.
        gate: what is asked of the evaluation.
        request: the evaluation that passed; of a candidate, the latest that is open or did not pass.
        reason: of a candidate, what is missing.
    """

    state: ReleaseState
    gate: ReleaseGate
    request: JobId | None = Field(default=None, exclude_if=lambda value: value is None)
    reason: str | None = Field(default=None, exclude_if=lambda value: value is None)


def decide_release(
    model: str, cohort: Collection[str], policy: Policy, requests: Iterable[RequestInfo]
) -> ModelRelease | None:
    """Decide how a model stands to its policy's gate; None where there is none.

    Any complete evaluation that passes releases the model, and answers never change, so what is released stays so.

    Args:
        model: its id.
        cohort: the organizations whose contributions it was merged from; the scores of others do not count.
        policy: the one under which it was merged.
        requests: the project's requests, of whatever kind and about whatever model, the oldest first.
    """
    gate = policy.release
    if gate is None:
        return None
    latest, reason = None, "nobody was asked to evaluate it"
    for request in requests:
        if request.kind not in EVALUATION_KINDS or model not in request.models:
            continue
        found = _why_held_back(request, model, cohort, policy, gate)
        if found is None:
            return ModelRelease(state="released", gate=gate, request=request.id)
        latest, reason = request.id, f"{request.id}: {found}"
    return ModelRelease(state="candidate", gate=gate, request=latest, reason=reason)


def may_be_fetched(organization: str | None, release: ModelRelease | None, about: Iterable[RequestInfo]) -> bool:
    """Tell whether an organization may have the files of a model: released, or asked about in an open request.

    Whoever is to evaluate or to measure a candidate needs it, until its answer is accepted.

    Args:
        organization: whose token it is.
        release: how the model stands; None: no gate holds it back.
        about: the requests about the model, of whatever kind.
    """
    if release is None or release.state == "released":
        return True
    return any(
        request.state == "open"
        and any(place.organization == organization and place.state != "accepted" for place in request.asked)
        for request in about
    )


def explain_candidate(project: str, model: str, release: ModelRelease) -> str:
    """Say what holds a candidate back, and what to do about it."""
    return (
        f"{model} is a candidate: it is released once {release.gate}. {release.reason}. The coordinator asks for an "
        f"evaluation with `gramfuse request create {project} evaluate {model}`, which everybody answers by "
        "`gramfuse participate`"
    )


def _why_held_back(
    request: RequestInfo, model: str, cohort: Collection[str], policy: Policy, gate: ReleaseGate
) -> str | None:
    """Say why this evaluation does not release the model; None where it does. Only numbers that all members see."""
    if request.state == "open":
        waiting = [place.organization for place in request.asked if place.state != "accepted"]
        return f"it is open until {', '.join(waiting)} {_have(waiting)} answered, or missed the deadline"
    if request.state != "complete":
        return f"it {'was taken back' if request.state == 'cancelled' else 'failed'}"
    counted = [place for place in request.asked if place.organization in cohort and _counts(place, model, policy)]
    absent = sorted(set(cohort) - {place.organization for place in counted})
    if absent and policy.missed_deadline == "fail":
        return f"{', '.join(absent)} did not score it on {policy.minimum_evaluation_examples} examples"
    if len(counted) < policy.minimum_cohort:
        return f"{len(counted)} organizations of its cohort scored it, fewer than the smallest cohort"
    faults = [
        *_unknown(counted, model, gate),
        *(() if gate.behind_own is None else _behind_own(counted, model, gate, gate.behind_own)),
        *(() if gate.mean is None else _mean_is_worse(counted, model, gate, gate.mean)),
    ]
    return "; ".join(faults) or None


def _counts(place: Asked, model: str, policy: Policy) -> bool:
    score = _score(place, model)
    return place.state == "accepted" and score is not None and score.examples >= policy.minimum_evaluation_examples


def _unknown(counted: Sequence[Asked], model: str, gate: ReleaseGate) -> list[str]:
    faults = [
        f"{place.organization}'s scores of it have no {gate.in_words}"
        for place in counted
        if _value(place, model, gate) is None
    ]
    if gate.behind_own is not None:
        faults += [
            f"{place.organization} has no {gate.in_words} of its own model beside it"
            for place in counted
            if _value(place, None, gate) is None
        ]
    return faults


def _behind_own(counted: Sequence[Asked], model: str, gate: ReleaseGate, allowed: float) -> list[str]:
    faults = []
    for place in counted:
        merged, own = _value(place, model, gate), _value(place, None, gate)
        if merged is None or own is None:
            continue
        behind = _worse_by(merged, own, gate)
        if behind > allowed + _ROUNDING:
            faults.append(
                f"at {place.organization} its {gate.in_words} {merged:.4f} is behind the {own:.4f} of the own model "
                f"by {behind:.4f}, more than {allowed:g}"
            )
    return faults


def _mean_is_worse(counted: Sequence[Asked], model: str, gate: ReleaseGate, wanted: float) -> list[str]:
    values = [value for place in counted if (value := _value(place, model, gate)) is not None]
    if len(values) < len(counted):
        return []  # said already
    mean = sum(values) / len(values)
    if _worse_by(mean, wanted, gate) <= _ROUNDING:
        return []
    return [f"the mean of its {gate.in_words} is {mean:.4f}, worse than {wanted:g}"]


def _worse_by(value: float, other: float, gate: ReleaseGate) -> float:
    return value - other if gate.metric in LOWER_IS_BETTER else other - value


def _value(place: Asked, model: str | None, gate: ReleaseGate) -> float | None:
    score = _score(place, model)
    return None if score is None else score.metrics.get(gate.metric)


def _score(place: Asked, model: str | None) -> ModelScore | None:
    return next((score for score in place.scores if score.model == model), None)


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"
