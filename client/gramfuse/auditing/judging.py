"""Judges a report: what of that which would leave passes a threshold. Pure; nothing is measured here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gramfuse.auditing.thresholds import Above, Below, Finding, Thresholds
from gramfuse.naming import few
from gramfuse_shared.contract.audit_summary import AuditKind

if TYPE_CHECKING:
    from gramfuse.auditing.report import AuditReport


@dataclass(frozen=True, slots=True)
class Judged:
    """What one threshold judges of a report: `values` by place, and what they are, in words."""

    threshold: AuditKind
    values: Sequence[tuple[str, float]]
    what: str


def judge(report: "AuditReport", thresholds: Thresholds) -> tuple[Finding, ...]:
    """Return the findings, the gravest first; of taps that share one a single finding, by the worst of them."""
    found = [
        finding
        for judged in judged_values(report)
        for finding in _findings(judged, getattr(thresholds, judged.threshold))
    ]
    return tuple(sorted(found, key=lambda finding: finding.verdict != "refuse"))


def judged_values(report: "AuditReport") -> tuple[Judged, ...]:
    """Return what each threshold judges, of what would leave alone; nothing where nothing was found out."""
    attacks, noised = report.attacks, "noised" in report.plan
    membership = [one for one in attacks.membership if one.leaves]
    tokens = [one for one in attacks.tokens if one.leaves]
    vocabulary = [one for one in attacks.vocabulary if one.leaves]
    # noised statistics: their rows are examples, and what a text moves is bounded by the noise
    rows = [] if noised else [(tap.tap, tap.rows_per_dimension) for tap in report.taps if tap.leaves]
    return (
        Judged("rows_per_dimension", rows, "distinct rows per dimension"),
        Judged("membership_auc", [(one.tap, one.auc) for one in membership], "membership's AUC"),
        Judged(
            "lone_texts",
            [(one.tap, one.alone) for one in membership],
            "of the texts have a row that carries a direction alone: a share",
        ),
        Judged("token_auc", [(one.tap, one.auc) for one in tokens if one.auc is not None], "the token counts' AUC"),
        Judged(
            "tokens_explained",
            [(one.tap, one.explained) for one in tokens if one.auc is None],
            "of it is explained by token counts",
        ),
        Judged(
            "vocabulary_auc",
            [(one.tensor, one.auc) for one in vocabulary if one.auc is not None],
            "the vocabulary's AUC",
        ),
    )


def _findings(judged: Judged, limits: Above | Below) -> Iterator[Finding]:
    is_above = isinstance(limits, Above)
    for verdict in ("refuse", "warn"):
        passed = [(on, value) for on, value in judged.values if limits.judge(value) == verdict]
        limit = limits.limit(verdict)
        if not passed or limit is None:
            continue
        on, worst = (max if is_above else min)(passed, key=lambda pair: pair[1])
        where = on if len(passed) == 1 else f"{few([place for place, _ in passed], 'place')}, the worst at {on}"
        told = f"{where}: {judged.what} is {worst:.3g}, {'above' if is_above else 'below'} {limit:g}"
        yield Finding(verdict=verdict, threshold=judged.threshold, on=on, value=worst, limit=limit, told=told)
