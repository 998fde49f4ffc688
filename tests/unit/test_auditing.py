"""Thresholds, what sums give away, the public texts that are shipped, and reports where torch is missing."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramfuse.auditing.reference_texts import reference_texts
from gramfuse.auditing.report import Attacks, AuditReport, Cohort, MembershipTold, Subject, TapReport, TokensFound
from gramfuse.auditing.sums import cohort_told, separates_up_to
from gramfuse.auditing.telling import summary
from gramfuse.auditing.thresholds import Above, Below, Thresholds
from support.demo_modules import DEMO

DIGEST = "ab" * 32


def tap(name="a", *, rows=1_000.0, leaves=True):
    return TapReport(
        tap=name,
        layers=("w",),
        width=10,
        outputs=10,
        rows=9,
        distinct_rows=9,
        rows_per_dimension=rows,
        source="mixed",
        leaves=leaves,
        separates_up_to=0,
    )


def member(name="a", *, auc=0.5, alone=0.0, leaves=True):
    return MembershipTold(tap=name, leaves=leaves, texts=9, auc=auc, alone=alone)


def report(*taps, plan=None, **attacks):
    return AuditReport(
        gramfuse="1",
        subject=Subject(weights=DIGEST, policy=DIGEST, base=DIGEST),
        plan=plan or {},
        plan_told="",
        taps=taps,
        cohort=Cohort(aggregation="plain", cohorts="frozen", minimum_cohort=3),
        attacks=Attacks(**attacks),
    )


def verdicts(made, thresholds=None):
    return {finding.threshold: finding.verdict for finding in made.judged(thresholds or Thresholds()).findings}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (report(tap(rows=199)), {"rows_per_dimension": "warn"}),
        (report(tap(rows=0.9)), {"rows_per_dimension": "refuse"}),
        (report(tap(rows=0.9, leaves=False)), {}),
        (report(tap(rows=0.9), plan={"noised": {}}), {}),
        (report(membership=(member(auc=0.61),)), {"membership_auc": "warn"}),
        (report(membership=(member(auc=0.96),)), {"membership_auc": "refuse"}),
        (report(membership=(member(auc=0.96, leaves=False),)), {}),
        (report(membership=(member(alone=0.02),)), {"lone_texts": "warn"}),
        (
            report(tokens=(TokensFound(tap="a", leaves=True, explained=0.9, named=3, named_once=1),)),
            {"tokens_explained": "warn"},
        ),
        (
            report(tokens=(TokensFound(tap="a", leaves=True, explained=0.9, named=3, named_once=1, auc=0.99),)),
            {"token_auc": "warn"},
        ),
    ],
)
def test_only_what_leaves_is_judged_by_the_usual_thresholds(made, expected):
    assert verdicts(made) == expected


def test_the_gravest_finding_is_the_verdict_and_stands_first():
    judged = report(tap("few", rows=100), tap("none", rows=0.5)).judged(Thresholds())
    assert judged.verdict == "refuse"
    assert [finding.verdict for finding in judged.findings] == ["refuse", "warn"]
    assert judged.findings[0].on == "none"
    assert report(tap()).judged(Thresholds()).verdict == "pass"


def test_taps_that_share_a_finding_are_one_and_the_worst_is_named():
    judged = report(membership=(member("a", auc=0.7), member("b", auc=0.8))).judged(Thresholds())
    (finding,) = judged.findings
    assert (finding.on, finding.value) == ("b", 0.8)
    assert "2 places" in finding.told


def test_thresholds_of_which_none_could_warn_are_refused():
    with pytest.raises(ValueError, match="warn is above refuse"):
        Above(warn=0.9, refuse=0.8)
    with pytest.raises(ValueError, match="warn is below refuse"):
        Below(warn=1, refuse=20)


def test_a_report_without_findings_still_says_that_it_is_no_guarantee():
    assert "no guarantee" in list(summary(report(tap()).judged(Thresholds())))[-1]


@given(width=st.integers(1, 4_000), outputs=st.integers(0, 20_000))
def test_sums_separate_for_two_members_where_outputs_are_as_wide_and_for_more_by_the_count_of_equations(width, outputs):
    most = separates_up_to(width, outputs)
    for members in range(3, most + 1):
        assert outputs >= (members - 1) * (width + 1) / 2
    assert (most >= 2) is (outputs >= width)
    if most >= 2:
        assert outputs < most * (width + 1) / 2  # one more member, and equations are too few


def test_the_measured_case_of_three_members_is_what_the_rule_says():
    """tests/attacks/test_sums.py: d = 24, N = 3 separates at m = 26 and not at 22; MiniLM's attention N = 2."""
    assert separates_up_to(24, 26) == 3
    assert separates_up_to(24, 22) == 0
    assert separates_up_to(384, 1_152) >= 2


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_every_report_says_that_cohorts_that_differ_by_a_member_reveal_it(aggregation):
    for cohorts, words in (("frozen", "freezes cohorts"), ("open", "such merges may be made")):
        told = " ".join(cohort_told(Cohort(aggregation=aggregation, cohorts=cohorts, minimum_cohort=3)))
        assert "differ by one member" in told
        assert words in told


def test_the_shipped_public_texts_are_those_of_the_demo():
    def lines(name):
        with gzip.open(DEMO / "data" / name, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream][:300]

    comments = [record["text"] for record in lines("goemotions.test.jsonl.gz")]
    posts = [" ".join(record["tokens"]) for record in lines("wnut17.test.jsonl.gz")]
    assert reference_texts() == [text for pair in zip(comments, posts, strict=True) for text in pair]
