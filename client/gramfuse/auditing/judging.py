"""Judges a report: what of that which would leave passes a threshold. Pure; nothing is measured here."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gramfuse.auditing.thresholds import Above, Below, Finding, Thresholds
from gramfuse.naming import few

if TYPE_CHECKING:
    from gramfuse.auditing.report import AuditReport


def judge(report: "AuditReport", thresholds: Thresholds) -> tuple[Finding, ...]:
    """Return the findings, the gravest first; of taps that share one a single finding, by the worst of them."""
    found = list(_findings(report, thresholds))
    return tuple(sorted(found, key=lambda finding: finding.verdict != "refuse"))


def _findings(report: "AuditReport", thresholds: Thresholds) -> Iterator[Finding]:
    attacks, noised = report.attacks, "noised" in report.plan
    if not noised:  # its rows are examples, and what a text moves is bounded by the noise
        rows = [(tap.tap, tap.rows_per_dimension) for tap in report.taps if tap.leaves]
        yield from _judge("rows_per_dimension", thresholds.rows_per_dimension, rows, "distinct rows per dimension")
    membership = [one for one in attacks.membership if one.leaves]
    yield from _judge(
        "membership_auc", thresholds.membership_auc, [(one.tap, one.auc) for one in membership], "membership's AUC"
    )
    yield from _judge(
        "lone_texts",
        thresholds.lone_texts,
        [(one.tap, one.alone) for one in membership],
        "of the texts have a row that carries a direction alone: a share",
    )
    tokens = [one for one in attacks.tokens if one.leaves]
    told = [(one.tap, one.auc) for one in tokens if one.auc is not None]
    yield from _judge("token_auc", thresholds.token_auc, told, "the token counts' AUC")
    blind = [(one.tap, one.explained) for one in tokens if one.auc is None]
    yield from _judge("tokens_explained", thresholds.tokens_explained, blind, "of it is explained by token counts")
    rows_moved = [(one.tensor, one.auc) for one in attacks.vocabulary if one.leaves and one.auc is not None]
    yield from _judge("vocabulary_auc", thresholds.vocabulary_auc, rows_moved, "the vocabulary's AUC")


def _judge(name: str, limits: Above | Below, measured: Sequence[tuple[str, float]], what: str) -> Iterator[Finding]:
    is_above = isinstance(limits, Above)
    for verdict in ("refuse", "warn"):
        passed = [(on, value) for on, value in measured if limits.judge(value) == verdict]
        limit = limits.limit(verdict)
        if not passed or limit is None:
            continue
        on, worst = (max if is_above else min)(passed, key=lambda pair: pair[1])
        where = on if len(passed) == 1 else f"{few([place for place, _ in passed], 'place')}, the worst at {on}"
        told = f"{where}: {what} is {worst:.3g}, {'above' if is_above else 'below'} {limit:g}"
        yield Finding(verdict=verdict, threshold=name, on=on, value=worst, limit=limit, told=told)
