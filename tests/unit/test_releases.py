"""Whether a merged model is released: decided from its policy and from what evaluations say, and from nothing else."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.contract.releases import decide_release, may_be_fetched
from gramfuse_shared.contract.requests import Asked, ModelScore, RequestInfo
from gramfuse_shared.errors import DocumentMalformedError, PolicyViolationError
from gramfuse_shared.reporting.policies import describe_policy

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COHORT = ("acme", "globex", "initech")
GATE = ReleaseGate(metric="f1", mean=0.6, behind_own=0.02)
PAST = {"acme": (0.6, 0.7), "globex": (0.6, 0.6), "initech": (0.7, 0.7)}
"""Of each organization its own model's f1 and the merged one's; this passes."""


def policy(gate: ReleaseGate | None = GATE, **changes) -> Policy:
    return Policy(requests=("evaluate", "gram"), release=gate, **changes)


def evaluation(numbers, *, name="eval-1", state="complete", metric="f1", examples=100, models=("m",)) -> RequestInfo:
    """A request that these organizations answered with (own, merged); None where there is no such score."""
    asked = []
    for organization, answered in numbers.items():
        scored = [] if answered is None else zip((None, "m"), answered, strict=True)
        scores = tuple(
            ModelScore(model=model, examples=examples, metrics={metric: value})
            for model, value in scored
            if value is not None
        )
        asked.append(Asked(organization=organization, state="accepted" if answered else "awaited", scores=scores))
    document = {"id": name, "project": "acme.tweets", "kind": "evaluate", "models": models, "state": state}
    policy_reference = {"version": 1, "digest": "0" * 64}
    facts = {"policy": policy_reference, "created_at": NOW, "deadline": NOW, "asked": asked}
    return RequestInfo.model_validate(document | facts)


def decide(*requests: RequestInfo, rules: Policy | None = None, cohort=COHORT):
    return decide_release("m", cohort, rules or policy(), requests)


def why(numbers, *, rules: Policy | None = None, **changes) -> str:
    found = decide(evaluation(numbers, **changes), rules=rules)
    assert found.state == "candidate"
    return found.reason


def test_without_a_gate_there_is_nothing_to_pass():
    assert decide(evaluation(PAST), rules=policy(None)) is None


def test_a_complete_evaluation_that_passes_both_bounds_releases_the_model():
    found = decide(evaluation(PAST))
    assert (found.state, found.request, found.reason) == ("released", "eval-1", None)


def test_before_anybody_is_asked_it_is_a_candidate():
    for requests in ((), (evaluation(PAST, models=("other",)),)):
        found = decide(*requests)
        assert (found.state, found.request, found.reason) == ("candidate", None, "nobody was asked to evaluate it")


def test_an_open_evaluation_releases_nothing_however_good_the_scores_that_are_in():
    found = decide(evaluation(PAST | {"initech": None}, state="open"))
    assert found.reason == "eval-1: it is open until initech has answered, or missed the deadline"


@pytest.mark.parametrize(("state", "says"), [("failed", "it failed"), ("cancelled", "it was taken back")])
def test_an_evaluation_that_ended_badly_releases_nothing(state, says):
    assert why(PAST, state=state) == f"eval-1: {says}"


def test_whose_own_model_is_better_by_more_than_the_bound_holds_it_back_by_name_and_numbers():
    numbers = PAST | {"globex": (0.65, 0.6)}
    assert why(numbers) == (
        "eval-1: at globex its f1 0.6000 is behind the 0.6500 of the own model by 0.0500, more than 0.02"
    )


def test_a_difference_that_is_just_the_bound_passes_although_doubles_say_it_is_a_little_more():
    assert 0.6 - 0.58 > 0.02
    gate = ReleaseGate(metric="f1", behind_own=0.02)
    assert decide(evaluation(dict.fromkeys(COHORT, (0.6, 0.58))), rules=policy(gate)).state == "released"


def test_a_mean_below_the_bound_holds_it_back():
    assert why(dict.fromkeys(COHORT, (0.5, 0.5))) == "eval-1: the mean of its f1 is 0.5000, worse than 0.6"


def test_of_a_loss_less_is_better():
    gate = ReleaseGate(metric="loss", mean=1.0, behind_own=0.1)
    good, bad = dict.fromkeys(COHORT, (1.0, 0.9)), dict.fromkeys(COHORT, (0.9, 1.2))
    assert decide(evaluation(good, metric="loss"), rules=policy(gate)).state == "released"
    reason = why(bad, metric="loss", rules=policy(gate))
    assert "at acme its loss 1.2000 is behind the 0.9000 of the own model by 0.3000" in reason
    assert "the mean of its loss is 1.2000, worse than 1" in reason


def test_what_was_not_scored_beside_is_not_taken_for_good():
    assert why(PAST | {"acme": (None, 0.9)}) == "eval-1: acme has no f1 of its own model beside it"
    assert decide(evaluation(PAST | {"acme": (None, 0.9)}), rules=policy(ReleaseGate(metric="f1", mean=0.6))).state == (
        "released"
    )


def test_a_missing_metric_is_not_taken_for_good():
    reason = why(PAST, metric="accuracy")
    assert all(f"{name}'s scores of it have no f1" in reason for name in COHORT)


def test_scores_of_fewer_examples_than_the_models_own_policy_wants_do_not_count():
    """Answers are checked against the policy of their time, which may be a later, laxer one."""
    reason = why(PAST, examples=99)
    assert reason == "eval-1: acme, globex, initech did not score it on 100 examples"


def test_a_member_who_did_not_answer_holds_it_back_unless_the_policy_leaves_out_who_misses_a_deadline():
    four = {"hooli": None, **PAST}
    cohort = ("hooli", *COHORT)
    request = evaluation(four)  # complete by a later policy's rule
    assert "hooli did not score it" in decide(request, cohort=cohort).reason
    assert decide(request, cohort=cohort, rules=policy(missed_deadline="leave_out")).state == "released"


def test_fewer_scores_than_the_smallest_cohort_release_nothing():
    few = evaluation(PAST | {"initech": None})
    reason = decide(few, rules=policy(missed_deadline="leave_out")).reason
    assert reason == "eval-1: 2 organizations of its cohort scored it, fewer than the smallest cohort"


def test_scores_of_organizations_outside_of_the_cohort_neither_help_nor_harm():
    strangers = {"hooli": (0.9, 0.1), "umbrella": (0.0, 1.0)}
    assert decide(evaluation(PAST | strangers)).state == "released"
    assert decide(evaluation(dict.fromkeys(COHORT, (0.5, 0.5)) | {"umbrella": (0.0, 1.0)})).state == "candidate"


def test_the_latest_evaluation_says_why_and_an_earlier_one_that_passed_is_not_undone():
    bad = dict.fromkeys(COHORT, (0.9, 0.1))
    failed = decide(evaluation(bad), evaluation(PAST | {"acme": None}, name="eval-2", state="open"))
    assert (failed.state, failed.request) == ("candidate", "eval-2")
    passed = decide(evaluation(PAST), evaluation(bad, name="eval-2"))
    assert (passed.state, passed.request) == ("released", "eval-1")


values = st.one_of(st.none(), st.floats(0, 1))
answers = st.dictionaries(st.sampled_from(COHORT), st.one_of(st.none(), st.tuples(values, values)), min_size=1)


@given(answers, st.lists(answers, max_size=2))
def test_no_further_request_takes_a_release_back(numbers, more):
    first = evaluation(numbers)
    later = [evaluation(found, name=f"later-{number}") for number, found in enumerate(more)]
    if decide(first).state == "released":
        assert decide(first, *later).request == "eval-1"


@given(answers, st.sampled_from(COHORT), st.floats(0, 1))
def test_a_better_score_never_holds_a_model_back(numbers, name, better):
    own, merged = numbers.get(name) or (None, None)
    if decide(evaluation(numbers)).state == "released" and better >= merged:
        assert decide(evaluation(numbers | {name: (own, better)})).state == "released"


# --- who may have the files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("organization", "state", "may"),
    [
        ("initech", "open", True),
        ("acme", "open", False),  # its answer is in
        ("hooli", "open", False),
        (None, "open", False),
        ("initech", "complete", False),
        ("initech", "failed", False),
        ("initech", "cancelled", False),
    ],
)
def test_a_candidate_is_for_whom_an_open_request_waits(organization, state, may):
    request = evaluation(PAST | {"initech": None}, state=state)
    release = decide(evaluation(PAST | {"initech": None}, state="failed"))
    assert may_be_fetched(organization, release, [request]) is may


def test_what_is_released_or_has_no_gate_is_for_everybody():
    assert may_be_fetched("hooli", decide(evaluation(PAST)), [])
    assert may_be_fetched("hooli", None, [])


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"requests": []}, "needs evaluate among the requests"),
        ({"downloads": "coordinator"}, "whoever evaluates a model holds it"),
        ({"release": {"metric": "f1"}}, "says a mean, or behind_own, or both"),
        ({"release": {"metric": "f1", "mean": 60}}, "f1 must be at least 0 and at most 1"),
        ({"release": {"metric": "perplexity", "mean": 0.5}}, "perplexity must be at least 1"),
        ({"release": {"metric": "f1", "behind_own": -0.1}}, "behind_own"),
        ({"release": {"metric": "bleu", "mean": 0.5}}, "metric"),
        ({"release": {"metric": "f1", "mean": 0.5, "of": "most"}}, "not a key that is known here"),
    ],
)
def test_a_gate_that_nothing_could_pass_or_that_bounds_nothing_is_refused(changes, says):
    document = policy().model_dump(mode="json") | changes
    with pytest.raises(DocumentMalformedError, match=says):
        Policy.parse(json.dumps(document))


def test_a_policy_without_a_gate_says_nothing_of_one():
    assert "release" not in policy(None).model_dump(mode="json")
    assert policy(ReleaseGate(metric="f1", mean=0.5)).model_dump(mode="json")["release"] == {
        "metric": "f1",
        "mean": 0.5,
    }


def test_the_policy_in_words_says_what_releases_a_model():
    told = describe_policy(policy())
    assert any("the mean of its f1 over its cohort is at least 0.6, and at no organization" in line for line in told)
    assert any(
        "its perplexity over its cohort is at most 9" in line
        for line in describe_policy(policy(ReleaseGate(metric="perplexity", mean=9)))
    )
    assert not any("released once" in line for line in describe_policy(policy(None)))


def test_an_answer_that_the_gate_could_not_read_is_refused_before_it_is_given():
    GATE.require_readable({"m": {"f1": 0.5}, None: {"f1": 0.6}})
    with pytest.raises(PolicyViolationError, match="name your own"):
        GATE.require_readable({"m": {"f1": 0.5}})
    with pytest.raises(PolicyViolationError, match="which the scores of m do not have"):
        GATE.require_readable({"m": {"loss": 0.5}, None: {"f1": 0.6}})
    with pytest.raises(PolicyViolationError, match="which the scores of your own model do not have"):
        GATE.require_readable({"m": {"f1": 0.5}, None: {"loss": 0.6}})
    ReleaseGate(metric="f1", mean=0.5).require_readable({"m": {"f1": 0.5}})
