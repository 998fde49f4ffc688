"""Summaries of audits, as organizations send them."""

from typing import Any

from gramfuse_shared.contract.audit_summary import KINDS, AuditOutcomes, AuditSummary


def outcomes(**changes: Any) -> AuditOutcomes:
    """Nothing was run but what is said."""
    return AuditOutcomes.model_validate(dict.fromkeys(KINDS, "not_run") | changes)


def summary(*, effort: Any = "bounded", texts_given: bool = False, thresholds: Any = "usual", **came_to: Any) -> Any:
    """Rows were counted and nothing warned, unless something else is said."""
    return AuditSummary(
        gramfuse="0.1.0",
        effort=effort,
        texts_given=texts_given,
        thresholds=thresholds,
        outcomes=outcomes(**({"rows_per_dimension": "pass"} | came_to)),
    )


WARNED = summary(texts_given=True, rows_per_dimension="warn", membership_auc="warn", lone_texts="pass")
