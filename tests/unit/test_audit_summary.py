"""The summary of an audit: what it can say, what a report makes of it, and how it is told."""

import json
from datetime import UTC, datetime

import pytest

from gramfuse.auditing.report import TokensFound, VocabularyTold
from gramfuse.auditing.summarizing import shared_summary, summarize
from gramfuse.auditing.thresholds import Above, Thresholds
from gramfuse_shared.contract.audit_summary import KINDS, AuditOutcomes, AuditSummary
from gramfuse_shared.contract.http_api import Contribution
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import DocumentMalformedError
from gramfuse_shared.identifiers import VERSION_PATTERN
from gramfuse_shared.reporting.audits import audit_told, summary_told, verdict_told
from gramfuse_shared.version import __version__
from support.audit_summaries import WARNED, outcomes, summary
from support.audited import DIGEST, report_of

SHARED = Policy(audit="shared")
NEVER = Above(warn=None, refuse=None)


def judged(thresholds=None, **attacks):
    """The report of `support.audited`, in which rows, membership and lone texts are judged of what leaves."""
    made = report_of()
    changed = made.attacks.model_copy(update=attacks)
    return made.model_copy(update={"attacks": changed}).judged(thresholds or Thresholds())


def test_each_threshold_is_a_kind_and_has_an_outcome():
    assert set(KINDS) == set(Thresholds.model_fields) == set(AuditOutcomes.model_fields)


def test_a_summary_has_no_place_for_a_number_or_a_name():
    document = json.loads(WARNED.canonical())
    words = {**document, **document.pop("outcomes")}
    assert all(isinstance(value, str | bool) for name, value in words.items() if name != "outcomes")
    schema = AuditSummary.model_json_schema()
    fields = schema["properties"] | schema["$defs"]["AuditOutcomes"]["properties"]
    free = {name for name, field in fields.items() if not {"enum", "const", "$ref"} & field.keys()}
    assert free == {"gramfuse", "texts_given"}
    assert (fields["gramfuse"]["pattern"], fields["texts_given"]["type"]) == (VERSION_PATTERN, "boolean")


@pytest.mark.parametrize(
    "change",
    [
        {"effort": "thorough"},
        {"gramfuse": "of our own making"},
        {"outcomes": {"rows_per_dimension": "pass"}},
        {"outcomes": json.loads(outcomes().canonical()) | {"membership_auc": "refuse"}},
        {"outcomes": json.loads(outcomes().canonical()) | {"membership_auc": 0.97}},
        {"outcomes": json.loads(outcomes().canonical()) | {"encoder.layer.1.query": "warn"}},
        {"texts": 600},
    ],
)
def test_what_is_no_word_of_a_summary_is_refused(change):
    with pytest.raises(DocumentMalformedError):
        AuditSummary.parse(json.dumps(json.loads(WARNED.canonical()) | change))


def test_policies_of_before_keep_their_digests():
    assert Policy(audit="private").canonical() == Policy().canonical()
    assert b"audit" not in Policy().canonical()
    assert SHARED.content_digest() != Policy().content_digest()


def test_a_summary_says_what_warned_what_did_not_and_what_was_not_run():
    made = summarize(judged())
    assert made.outcomes == outcomes(rows_per_dimension="warn", membership_auc="warn", lone_texts="pass")
    assert (made.verdict, made.kinds("warn")) == ("warn", ("rows_per_dimension", "membership_auc"))
    assert (made.texts_given, made.thresholds, made.effort) == (False, "usual", "headers")
    assert summarize(report_of(auc=0.5)).outcomes.membership_auc == "pass"


def test_attacks_on_what_stays_at_home_are_not_told():
    """The report of `support.audited` found tokens and vocabulary, of a tap and a tensor that stay."""
    stays = summarize(judged()).outcomes
    assert (stays.token_auc, stays.tokens_explained, stays.vocabulary_auc) == ("not_run",) * 3
    leaving = summarize(
        judged(
            tokens=(
                TokensFound(tap="a", leaves=True, explained=0.4, named=3, named_once=1),
                TokensFound(tap="b", leaves=True, explained=0.4, named=3, named_once=1, auc=0.9),
            ),
            vocabulary=(VocabularyTold(tensor="e", leaves=True, moved=5, right=5, auc=0.5),),
        )
    ).outcomes
    assert (leaving.token_auc, leaving.tokens_explained, leaving.vocabulary_auc) == ("warn", "pass", "pass")


def test_a_threshold_of_ones_own_is_said_and_one_that_never_judges_is_not_told_as_passed():
    own = summarize(judged(Thresholds(membership_auc=NEVER)))
    assert (own.thresholds, own.outcomes.membership_auc, own.outcomes.rows_per_dimension) == ("own", "not_run", "warn")
    lenient = summarize(judged(Thresholds(membership_auc=Above(refuse=0.95))))
    assert (lenient.thresholds, lenient.outcomes.membership_auc) == ("own", "pass")


def test_rows_of_noised_statistics_are_not_judged():
    noised = judged().model_copy(update={"plan": {"noised": {}}}).judged(Thresholds())
    assert summarize(noised).outcomes.rows_per_dimension == "not_run"


def test_that_texts_were_given_is_said_and_not_how_many():
    given = judged(texts=DIGEST)
    assert summarize(given).texts_given
    assert DIGEST.encode() not in summarize(given).canonical()


def test_nothing_is_summed_up_for_a_policy_that_keeps_it_at_home_nor_of_an_audit_that_refuses():
    assert shared_summary(judged(), SHARED) == summarize(judged())
    assert shared_summary(judged(), Policy()) is None
    assert shared_summary(report_of(auc=0.99), SHARED) is None


def contribution(**changes):
    at = datetime(2026, 3, 1, tzinfo=UTC)
    document = {
        "id": DIGEST,
        "organization": "acme",
        "state": "open",
        "policy": {"version": 1, "digest": DIGEST},
        "bytes": 1,
        "created_at": at,
    }
    return Contribution.model_validate(document | changes)


def test_how_an_audit_came_out_is_told_in_a_few_words_and_in_full():
    assert audit_told(contribution()) == "stays at home"
    assert audit_told(contribution(shares_audit=True)) == "not sent yet"
    assert audit_told(contribution(shares_audit=True, audit=WARNED)) == "2 warnings: rows, membership (3 of 6 judged)"
    assert verdict_told(summary()) == "nothing warned (1 of 6 judged)"
    assert verdict_told(summary(rows_per_dimension="warn")) == "1 warning: rows (1 of 6 judged)"
    assert summary_told(WARNED) == (
        "gramfuse 0.1.0, attacks of bounded effort, with the texts, usual thresholds; warned: rows, membership; "
        "nothing warned: lone texts; not run: tokens, tokens explained, vocabulary"
    )
    assert "headers alone were read, nothing was attacked, without the texts" in summary_told(summary(effort="headers"))


def test_the_version_that_is_installed_fits():
    assert AuditSummary.parse(WARNED.model_copy(update={"gramfuse": __version__}).canonical()).gramfuse == __version__
