"""The report in words: rows of the tables, and the summary that a push shows. The terminal and the page both use it."""

from collections.abc import Iterator, Sequence
from typing import Final

from gramfuse.auditing.report import (
    KEPT_PRIVATE,
    AuditReport,
    MembershipTold,
    NotRun,
    TapReport,
    TokensFound,
    VocabularyTold,
)
from gramfuse.auditing.sums import cohort_told
from gramfuse.naming import folded, name_pattern

TAP_COLUMNS: Final = ("statistics of", "width", "distinct rows", "per dim.", "eff. rank", "sums of", "fed by", "")
ATTACK_COLUMNS: Final = ("attack", "on", "", "AUC", "which")
SUMS_NOTE: Final = (
    "“sums of”: in cohorts of up to about so many members, sums of G and GW give every single G to who knows the "
    "members' weights; –: in none."
)
_WORDS: Final = {
    "pass": "Nothing that would leave is beyond a threshold.",
    "warn": "What would leave is beyond thresholds that warn: read these before you send it.",
    "refuse": "Refused: what would leave is beyond a threshold.",
}
_REFERENCES: Final = {
    "none": "Membership was not calibrated by public texts: an attacker who has texts like yours finds more.",
    "shipped": (
        "Membership: by the stronger of two attacks, one calibrated by the public texts that come with gramfuse, "
        "English from social media. An attacker who has texts like yours finds more: name such with --public."
    ),
    "given": (
        "Membership: by the stronger of two attacks, one calibrated by the public texts that were given. An attacker "
        "who has texts more like yours finds more."
    ),
}
_KIND: Final = (
    " “Against public” is the AUC of your texts against public ones; where those are of another kind it tells what "
    "kind yours are, whether or not a text was among them."
)


def verdict_told(report: AuditReport) -> str:
    """Say in a sentence what the report comes to."""
    return _WORDS[report.verdict]


def reference_told(report: AuditReport) -> str | None:
    """Say what membership was compared with; None where it was not told at all."""
    if not report.attacks.membership:
        return None
    reference = report.attacks.reference
    return _REFERENCES[reference] + ("" if reference == "none" else _KIND)


def sums_told(report: AuditReport) -> tuple[str, ...]:
    """Say what sums over a cohort's members reveal."""
    return cohort_told(report.cohort)


def not_run_told(what: NotRun) -> str:
    """Say what was not attacked, why, and how to."""
    return f"{what.what}: {what.because}" + ("" if what.remedy is None else f" ({what.remedy})")


def summary(report: AuditReport) -> Iterator[str]:
    """Tell the findings and what was not attacked in a few lines, as a push shows them before it asks."""
    yield f"Audit: {verdict_told(report)}"
    if report.is_kept:
        yield f"  {origin_told(report)}"
    for finding in report.findings:
        yield f"  {'REFUSED' if finding.verdict == 'refuse' else 'Warning'}: {finding.told}"
    worst = report.worst_leaving()
    if worst is not None:
        yield f"  Of what leaves, the attacks that were run found most in {worst[0]}: AUC {worst[1]:.3f} (½ is chance)"
    for unrun in report.attacks.not_run:
        yield f"  Not attacked: {not_run_told(unrun)}"
    yield "  This is no guarantee of privacy: better attacks find more."


def origin_told(report: AuditReport) -> str:
    """Say when a report was made that is taken again, and of which texts."""
    made = "of an unknown time" if report.made_at is None else f"of {report.made_at:%Y-%m-%d %H:%M} UTC"
    given = report.attacks.texts_given
    if report.attacks.texts is None:
        texts = "without texts"
    elif given is None:
        texts = "with texts"
    else:
        texts = f"with {given.count:,} texts" + ("" if given.file is None else f" of {given.file}")
    return f"This is the kept report {made}, made {texts}; nothing that it hangs on has changed since."


def told_in_push(report: AuditReport) -> str:
    """Tell a report as a push shows it, before it asks."""
    return "\n".join(summary(report))


def kept_told(report: AuditReport) -> str:
    """Say how the report itself is to be kept."""
    return (
        KEPT_PRIVATE
        if report.attacks.texts is not None
        else "The report lies in this machine's home, and is never sent."
    )


def attack_rows(report: AuditReport) -> list[tuple[str, str, str, str, str]]:
    """Make a row of every attack: kind, where, whether that leaves, AUC, what it finds."""
    attacks = report.attacks
    found = [("token counts", one.tap, one.leaves, one.auc, tokens_told(one)) for one in attacks.tokens]
    found += [("membership", one.tap, one.leaves, one.auc, membership_told(one)) for one in attacks.membership]
    found += [("vocabulary", one.tensor, one.leaves, one.auc, vocabulary_told(one)) for one in attacks.vocabulary]
    return [
        (kind, on, fate(leaves=leaves), "–" if auc is None else f"{auc:.3f}", told)
        for kind, on, leaves, auc, told in found
    ]


def tokens_told(found: TokensFound) -> str:
    """Say what a fit of token counts names."""
    counts = (
        f"{found.named:,} tokens account for {found.explained:.0%} of the matrix, {found.named_once:,} of them once"
    )
    if found.right is None:
        return f"{counts}; whether they occur in your texts can be told with --texts"
    return (
        f"{counts}; {found.right:,} of the {found.present:,} that occur are named, and {found.singletons_named:,} of "
        f"{found.singletons:,} that one text alone holds"
    )


def membership_told(told: MembershipTold) -> str:
    """Say how well texts are told apart, alone and in sums."""
    sums = ", ".join(f"{auc:.2f} of {members}" for members, auc in told.sums.items())
    public = "" if told.against_public is None else f"against public {told.against_public:.2f}; "
    return f"{public}estimated in a sum {sums}; {told.alone:.0%} of texts have a row that carries a direction alone"


def vocabulary_told(told: VocabularyTold) -> str:
    """Say which embedding rows were trained."""
    if told.right is None:
        return f"{told.moved:,} rows were trained: their tokens occurred"
    return f"{told.moved:,} rows were trained, {told.right:,} of them of tokens of your texts"


def tap_rows(taps: Sequence[TapReport]) -> list[tuple[str, ...]]:
    """Make a row of the taps whose names differ only in layer numbers and that share a fate; the JSON has each."""
    alike: dict[tuple[object, ...], list[TapReport]] = {}
    for tap in taps:
        alike.setdefault((name_pattern(tap.tap), tap.width, tap.source, tap.leaves), []).append(tap)
    return [
        (
            folded([tap.tap for tap in members]),
            str(members[0].width),
            _span([tap.distinct_rows for tap in members], ",.0f"),
            _span([tap.rows_per_dimension for tap in members], ",.1f"),
            _span([tap.effective_rank for tap in members if tap.effective_rank is not None], ",.0f"),
            _span([tap.separates_up_to for tap in members if tap.separates_up_to], ".0f"),
            members[0].source,
            fate(leaves=members[0].leaves),
        )
        for members in alike.values()
    ]


def fate(*, leaves: bool) -> str:
    """Say whether something leaves."""
    return "leaves" if leaves else "stays"


def _span(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"
