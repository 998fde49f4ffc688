"""How far an organization is, told from its contributions, and what differs between two policies, in words."""

from datetime import UTC, datetime, timedelta

import pytest

from gramfuse_shared.contract.http_api import Contribution
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.reporting.contributions import progress_told, spoken_of, why_passed_over
from gramfuse_shared.reporting.policies import describe_policy, policy_differences

BEGINNING = datetime(2026, 3, 1, tzinfo=UTC)


def sent(state, version, *, hour=0, counts=False, passed_over=None):
    return Contribution(
        id=f"{hour:064x}",
        organization="acme",
        state=state,
        counts=counts,
        passed_over=passed_over,
        policy={"version": version, "digest": "a" * 64},
        bytes=1,
        created_at=BEGINNING + timedelta(hours=hour),
    )


COUNTS = sent("accepted", 2, hour=5, counts=True)
OUTDATED = sent("accepted", 1, hour=1, passed_over="policy")
REPLACED = sent("accepted", 1, passed_over="newer")
REFUSED_BEFORE = sent("rejected", 1, hour=2)
AGAIN = "contribution made under version 1 of the policy: push again"


@pytest.mark.parametrize(
    ("contributions", "told"),
    [
        ((), "no contribution yet"),
        ((REFUSED_BEFORE,), "no contribution yet"),
        ((OUTDATED,), AGAIN),
        ((REPLACED, OUTDATED, REFUSED_BEFORE), AGAIN),
        ((OUTDATED, sent("sealed", 2, hour=3)), "contribution being checked"),
        ((OUTDATED, sent("rejected", 2, hour=3)), "contribution rejected"),
        ((sent("rejected", 2, hour=6), REPLACED, COUNTS), "contribution accepted"),
        ((sent("accepted", 2, passed_over="newer"), sent("withdrawn", 2, hour=1)), "contribution withdrawn"),
    ],
)
def test_how_far_an_organization_is_is_told_under_the_current_policy(contributions, told):
    assert progress_told(spoken_of(contributions, 2)) == told


def test_of_several_in_one_state_the_newest_is_spoken_of():
    newest = sent("rejected", 2, hour=4)
    assert spoken_of((sent("rejected", 2, hour=3), newest, sent("rejected", 2)), 2) is newest


def test_only_an_accepted_contribution_that_does_not_count_is_passed_over():
    assert why_passed_over(COUNTS) is why_passed_over(REFUSED_BEFORE) is None
    assert why_passed_over(OUTDATED) == "made under version 1 of the policy: push again"
    assert why_passed_over(REPLACED) == "a newer one took its place"


def test_equal_policies_do_not_differ_and_every_field_that_changes_is_told():
    assert policy_differences(Policy(), Policy()) == []
    changes = {
        "aggregation": "secure",
        "methods": ("linear",),
        "embeddings": "average",
        "embedding_parameters": ("x",),
        "embedding_taps": "send",
        "heads": "shared",
        "head_parameters": (),
        "minimum_rows_per_dimension": 1.5,
        "advised_rows_per_dimension": 300.0,
        "given_labels": "send",
        "audit": "shared",
        "missing_statistics": "estimate",
        "scales": "b" * 64,
        "minimum_cohort": 4,
        "cohorts": "open",
        "downloads": "coordinator",
        "requests": ("evaluate",),
        "missed_deadline": "leave_out",
        "minimum_evaluation_examples": 7,
        "differential_privacy": {"epsilon": 8, "delta": 1e-6},
        "release": {"metric": "f1", "mean": 0.5},
    }
    assert changes.keys() == Policy.model_fields.keys() - {"format"}
    for name, value in changes.items():
        parsed = Policy.model_validate({"requests": ["evaluate"], name: value}) if name == "release" else None
        now = parsed or Policy(**{name: value})
        before = Policy(requests=("evaluate",)) if parsed else Policy()
        assert policy_differences(before, now), name


def test_what_sentences_tell_is_told_by_them_and_the_rest_by_its_values():
    before = Policy(heads="shared", head_parameters=("score.*",))
    assert policy_differences(before, Policy(heads="private", head_parameters=())) == [
        f"- {next(line for line in describe_policy(before) if line.startswith('Task heads'))}",
        f"+ {next(line for line in describe_policy(Policy()) if line.startswith('Task heads'))}",
        "* head_parameters: score.* → none",
    ]
