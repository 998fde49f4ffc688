"""What a policy with differential privacy lets leave: noised by its scales, within its budget, and nothing beside."""

import json

import pytest

from gramfuse.contributing.planning import plan_contribution
from gramfuse_shared.contract.manifest import CollectorSettings, tensors_of
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.privacy import COVERS, MOST_EPSILON, Noised, PrivacyBudget
from gramfuse_shared.contract.rules import require_policy, why_tap_stays
from gramfuse_shared.contract.safetensors_header import parse_header
from gramfuse_shared.contract.statistics_file import StatisticsMetadata
from gramfuse_shared.errors import DocumentMalformedError, PolicyViolationError
from gramfuse_shared.reporting.policies import describe_policy
from support.server_world import make_base, make_contribution, make_tap

SCALES = "a" * 64
PRIVATE = Policy(differential_privacy=PrivacyBudget(epsilon=8, delta=1e-5), scales=SCALES)
FEW = make_tap(rows=5, distinct_rows=5)
WEIGHTS = {"encoder.query.weight"}


def noised(**changes) -> Noised:
    document = {"epsilon": 8.0, "delta": 1e-5, "examples": 5, "scales": SCALES, "release": "b" * 32}
    return Noised.model_validate(document | changes)


def test_statistics_that_are_noised_for_the_policy_leave_however_few_the_texts():
    assert why_tap_stays(FEW, WEIGHTS, PRIVATE, noised=noised()) is None
    assert why_tap_stays(FEW, WEIGHTS, PRIVATE, noised=noised(epsilon=2.0, delta=1e-6)) is None


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (None, "gramfuse dp collect"),
        (noised(epsilon=8.1), "noised for ε = 8.1"),
        (noised(delta=1e-4), "δ = 0.0001"),
        (noised(scales="c" * 64), "other scales"),
    ],
)
def test_others_stay_and_are_told_why(told, says):
    reason = why_tap_stays(make_tap(rows=10**6, distinct_rows=10**6), WEIGHTS, PRIVATE, noised=told)
    assert reason is not None
    assert says in reason


def test_noise_does_not_make_up_for_embeddings_that_feed_a_tap():
    tap = make_tap(source="embeddings")
    assert "token counts" in (why_tap_stays(tap, WEIGHTS, PRIVATE, noised=noised()) or "")


def test_the_server_refuses_what_the_client_would_keep():
    base = make_base().manifest
    project = {"id": "acme.tweets", "base": base.content_digest(), "policy": {"version": 1, "digest": "d" * 64}}
    bare = make_contribution(project, "acme", taps=(FEW,)).manifest
    with pytest.raises(PolicyViolationError, match="wants noise on them"):
        require_policy(bare, base, PRIVATE)
    told = CollectorSettings(collector_version="0.1.0", noised=noised())
    sent = bare.model_copy(update={"statistics": bare.statistics.model_copy(update={"collector": told})})
    require_policy(sent, base, PRIVATE)


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["regmean", "fisher"]},
        {"methods": ["head"], "heads": "shared"},
        {"requests": ["gram"]},
        {"requests": ["head"]},
        {"requests": ["calibration"]},
        {"requests": ["refit"]},
        {"methods": ["refit"], "heads": "shared"},
    ],
)
def test_a_policy_cannot_want_noise_and_ask_for_statistics_without(changes):
    document = PRIVATE.model_dump(mode="json") | changes
    with pytest.raises(DocumentMalformedError, match="of which nothing is noised"):
        Policy.parse(json.dumps(document))


@pytest.mark.parametrize(
    "budget",
    [
        {"epsilon": 0, "delta": 1e-5},
        {"epsilon": MOST_EPSILON + 1, "delta": 1e-5},
        {"epsilon": 8, "delta": 0},
        {"epsilon": 8, "delta": 0.1},
        {"epsilon": 8},
    ],
)
def test_a_budget_that_promises_nothing_is_none(budget):
    with pytest.raises(DocumentMalformedError):
        Policy.parse(json.dumps({"differential_privacy": budget}))


@pytest.mark.parametrize("changes", [{"weighting": "output_gradient"}, {"padding": "counted"}])
def test_rows_that_gradients_weigh_are_not_called_noised(changes):
    with pytest.raises(ValueError, match="not clipped"):
        CollectorSettings(collector_version="0", noised=noised(), **changes)


def test_policies_and_settings_without_noise_keep_their_bytes():
    assert b"differential_privacy" not in Policy().canonical()
    assert b"noised" not in CollectorSettings(collector_version="0").canonical()


def test_the_plan_and_the_policy_in_words_say_what_epsilon_does_not_cover():
    made = make_base()
    tensors = tensors_of(parse_header(made.files["model.safetensors"], len(made.files["model.safetensors"])))
    metadata = StatisticsMetadata(collector=CollectorSettings(collector_version="0", noised=noised()), taps=(FEW,))
    plan = plan_contribution(tensors, metadata, made.manifest, PRIVATE)
    assert f"ε = 8, δ = 1e-05, of 5 texts. {COVERS}" in str(plan)
    assert plan.to_json()["noised"]["notice"] == COVERS
    assert not any("rows per dimension" in warning for warning in plan.warnings)
    assert any(COVERS in sentence and "ε = 8" in sentence for sentence in describe_policy(PRIVATE))
