"""What leaves of a report where the policy shares how audits came out: words, made of a report alone. Pure."""

from gramfuse.auditing.judging import Judged, judged_values
from gramfuse.auditing.report import AuditReport
from gramfuse.auditing.thresholds import Thresholds
from gramfuse_shared.contract.audit_summary import AuditOutcome, AuditOutcomes, AuditSummary
from gramfuse_shared.contract.policy import Policy


def shared_summary(report: AuditReport, policy: Policy) -> AuditSummary | None:
    """Return what a push of this sends of its report; None where the policy keeps it at home, or the audit refuses."""
    return summarize(report) if policy.audit == "shared" and report.verdict != "refuse" else None


def summarize(report: AuditReport) -> AuditSummary:
    """Sum up a report that refuses nothing: what was run and what warned, without a number or a name."""
    outcomes = {judged.threshold: _outcome(judged, report) for judged in judged_values(report)}
    return AuditSummary(
        gramfuse=report.gramfuse,
        effort=report.effort,
        texts_given=report.attacks.texts is not None,
        thresholds="usual" if report.thresholds == Thresholds() else "own",
        outcomes=AuditOutcomes(**outcomes),
    )


def _outcome(judged: Judged, report: AuditReport) -> AuditOutcome:
    limits = getattr(report.thresholds, judged.threshold)
    if not judged.values or (limits.warn is None and limits.refuse is None):
        return "not_run"  # a threshold that never judges must not read as one that found nothing
    return "warn" if any(finding.threshold == judged.threshold for finding in report.findings) else "pass"
