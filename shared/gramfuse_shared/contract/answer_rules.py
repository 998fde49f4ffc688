"""What an answer to a request may hold: what was asked, and of that what the policy lets leave."""

from collections.abc import Sequence

from gramfuse_shared.contract.manifest import BaseManifest, StatisticsSection
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.refits import (
    WHY_NOT_REFIT,
    bias_of_labels,
    heads_to_refit,
    layers_that_may_be_refit,
    require_histograms_may_leave,
)
from gramfuse_shared.contract.requests import (
    OF_LAYERS,
    Answer,
    AskedKind,
    RequestCreate,
    RequestInfo,
    is_announced,
    require_request_allowed,
)
from gramfuse_shared.contract.rules import weights_that_may_leave, why_tap_stays
from gramfuse_shared.contract.secure import STAGES
from gramfuse_shared.errors import ArchitectureMismatchError, PolicyViolationError, RequestMalformedError


def require_answer_allowed(
    answer: Answer, asked: RequestCreate | RequestInfo, policy: Policy, base: BaseManifest
) -> None:
    """Require that an answer is one to this request, and that the policy lets all of it leave.

    The client enforces it before it sends, the server again before it takes a byte.

    Raises:
        RequestMalformedError: it answers something else.
        PolicyViolationError: it was measured on too few examples, or holds statistics that may not leave.
        ArchitectureMismatchError: it holds statistics of layers that were not asked for, or the base has no such head.
    """
    require_request_allowed(asked.kind, policy)
    require_parts(answer, asked.kind)
    _require_announced(answer, asked.kind, policy)
    if asked.kind == "evaluate":
        _require_scores(answer, asked.models, policy)
    if answer.statistics is not None:
        _require_statistics(answer.statistics, asked, policy, base)
    if answer.histograms is not None:
        if not answer.announced:
            require_histograms_may_leave(answer.histograms, policy)
        bias_of_labels(base, policy, answer.histograms.labels)


def require_parts(answer: Answer, kind: AskedKind) -> None:
    """Require that an answer consists of what its kind is answered by, and of nothing else.

    Raises:
        RequestMalformedError: it does not.
    """
    found = {
        "scores": bool(answer.scores),
        "Gram matrices": answer.statistics is not None and answer.statistics.kind == "gram",
        "head statistics": answer.statistics is not None and answer.statistics.kind == "head",
        "refit statistics": answer.statistics is not None and answer.statistics.kind == "refit",
        "histograms": answer.histograms is not None,
        "the word that nothing may leave": bool(answer.withheld),
        f"a message of the stage {kind}": answer.message is not None and answer.message.message.stage == kind,
        "another message": answer.message is not None and answer.message.message.stage != kind,
    }
    parts: dict[AskedKind, str] = {
        **dict.fromkeys(STAGES, f"a message of the stage {kind}"),
        "evaluate": "scores",
        "gram": "Gram matrices",
        "head": "head statistics",
        "refit": "refit statistics",
        "calibration": "histograms",
    }
    given = [part for part, there in found.items() if there]
    if given == ["the word that nothing may leave"] and kind in OF_LAYERS:
        return
    if given != [parts[kind]]:
        msg = f"an answer to a request of the kind {kind} holds {parts[kind]} and nothing else"
        raise RequestMalformedError(msg)


def _require_announced(answer: Answer, kind: AskedKind, policy: Policy) -> None:
    wanted = is_announced(kind, policy)
    if answer.announced != wanted:
        msg = (
            f"the policy sums answers to {kind} in secret (aggregation: secure), so they are announced, and their "
            "numbers never sent"
            if wanted
            else f"an answer to {kind} is sent, not announced, under aggregation: {policy.aggregation}"
        )
        raise PolicyViolationError(msg, kind=kind)
    if answer.announced and answer.histograms is not None and answer.histograms.classes:
        msg = "an announced answer counts no scores: its histograms are of no class"
        raise PolicyViolationError(msg, kind=kind)


def _require_scores(answer: Answer, models: Sequence[str], policy: Policy) -> None:
    scored = [score.model for score in answer.scores if score.model is not None]
    if sorted(scored) != sorted(models) or len(answer.scores) - len(scored) > 1:
        msg = f"an evaluation scores each of {', '.join(models)} once, at most the organization's own beside, no more"
        raise RequestMalformedError(msg)
    require_enough_examples(min(score.examples for score in answer.scores), policy)
    if policy.release is not None:
        policy.release.require_readable({score.model: score.metrics for score in answer.scores})


def require_enough_examples(examples: int, policy: Policy) -> None:
    """Require that an evaluation counts as many distinct texts as the policy wants.

    Raises:
        PolicyViolationError: it does not.
    """
    needed = policy.minimum_evaluation_examples
    if examples < needed:
        msg = (
            f"the evaluation counts {examples} examples, the policy wants {needed} (minimum_evaluation_examples); "
            "use more held-out texts"
        )
        raise PolicyViolationError(msg, examples=examples)


def _require_statistics(
    statistics: StatisticsSection, asked: RequestCreate | RequestInfo, policy: Policy, base: BaseManifest
) -> None:
    weighting = statistics.collector.weighting
    if weighting != asked.weighting:
        msg = f"the rows were weighted by {weighting}, asked for is {asked.weighting}"
        raise RequestMalformedError(msg)
    measured = {layer.weight for tap in statistics.taps for layer in tap.layers}
    spare = sorted(measured - set(asked.layers)) if asked.layers else []
    if spare:
        msg = f"{spare[0]} was not asked for"
        raise ArchitectureMismatchError(msg, layers=spare[:20])
    # what was never contributed needs no statistics either
    sendable = heads_to_refit(base, policy) if asked.kind == "head" else weights_that_may_leave(base, policy)
    if asked.kind == "refit":  # a product tells its own layer, whatever else reads the tap
        sendable = layers_that_may_be_refit(base, policy)
        kept = sorted(measured - sendable)
        if kept:
            msg = f"what {kept[0]} would be refit from may not leave: {WHY_NOT_REFIT}"
            raise PolicyViolationError(msg, refused=kept[:20])
    for tap in statistics.taps:
        reason = why_tap_stays(tap, sendable, policy)
        if reason is not None:
            msg = f"tap {tap.name} may not leave: {reason}"
            raise PolicyViolationError(msg, refused=[tap.name])
