"""The summary of an audit in words: the same before a push, on the command line and on pages."""

from collections.abc import Sequence
from typing import Final

from gramfuse_shared.contract.audit_summary import KINDS, AuditEffort, AuditKind, AuditSummary
from gramfuse_shared.contract.http_api import Contribution

_KINDS: Final[dict[AuditKind, str]] = {
    "rows_per_dimension": "rows",
    "membership_auc": "membership",
    "lone_texts": "lone texts",
    "token_auc": "tokens",
    "tokens_explained": "tokens explained",
    "vocabulary_auc": "vocabulary",
}
_EFFORTS: Final[dict[AuditEffort, str]] = {
    "headers": "headers alone were read, nothing was attacked",
    "quick": "quick attacks, which load no model",
    "bounded": "attacks of bounded effort",
    "all": "all attacks",
}


def audit_told(contribution: Contribution) -> str:
    """Say in a few words how the audit of a contribution came out, or why nothing is known of it here."""
    if contribution.audit is None:
        return "not sent yet" if contribution.shares_audit else "stays at home"
    return verdict_told(contribution.audit)


def verdict_told(summary: AuditSummary) -> str:
    """Say in a few words what warned, and of how many kinds of finding."""
    warned, unrun = summary.kinds("warn"), summary.kinds("not_run")
    judged = f"{len(KINDS) - len(unrun)} of {len(KINDS)} judged"
    if not warned:
        return f"nothing warned ({judged})"
    return f"{len(warned)} warning{'' if len(warned) == 1 else 's'}: {_named(warned)} ({judged})"


def summary_told(summary: AuditSummary) -> str:
    """Say all that a summary says."""
    parts = [
        f"gramfuse {summary.gramfuse}",
        _EFFORTS[summary.effort],
        "with the texts" if summary.texts_given else "without the texts",
        f"{summary.thresholds} thresholds",
    ]
    outcomes = [
        f"{words}: {_named(kinds)}"
        for words, kinds in (
            ("warned", summary.kinds("warn")),
            ("nothing warned", summary.kinds("pass")),
            ("not run", summary.kinds("not_run")),
        )
        if kinds
    ]
    return "; ".join([", ".join(parts), *outcomes])


def _named(kinds: Sequence[AuditKind]) -> str:
    return ", ".join(_KINDS[kind] for kind in kinds)
