"""Writes a report as one self-contained page: no script, no other file, light and dark, wide and narrow."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Final

from gramfuse.auditing import telling
from gramfuse.auditing.plots import Plot, draw_all
from gramfuse.auditing.report import KEPT_PRIVATE, AuditReport
from gramfuse.whole_files import written_whole

_TEMPLATE: Final = Path(__file__).parent / "page.html.template"
_TITLES: Final = {
    "pass": "Nothing is beyond a threshold",
    "warn": "Read the warnings before you send this",
    "refuse": "Refused: this would give too much away",
}
_NUMBERS: Final = frozenset({"width", "distinct rows", "per dim.", "eff. rank", "sums of", "AUC"})


def write_page(report: AuditReport, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        FileUnwritableError: the folder cannot be written.
    """
    with written_whole(path) as stream:
        stream.write(page(report).encode())


def page(report: AuditReport) -> str:
    """Return the page. Whatever came from files is escaped: names of tensors, reasons, paths."""
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        verdict=report.verdict,
        title=_TITLES[report.verdict],
        told=html.escape(telling.verdict_told(report)),
        worst=_worst(report),
        findings=_findings(report),
        plots="\n".join(map(_figure, draw_all(report))),
        attacks=_table(telling.ATTACK_COLUMNS, telling.attack_rows(report)) or _nothing("No attack was run."),
        reference=_paragraphs(filter(None, [telling.reference_told(report)])),
        not_run=_items(telling.not_run_told(unrun) for unrun in report.attacks.not_run),
        taps=_table(telling.TAP_COLUMNS, telling.tap_rows(report.taps)) or _nothing("No statistics were given."),
        sums_note=html.escape(telling.SUMS_NOTE),
        sums=_items(telling.sums_told(report)),
        plan=html.escape(report.plan_told),
        notice=html.escape(report.notice),
        private=html.escape(KEPT_PRIVATE),
        subject=_definitions(report.subject.model_dump(mode="json")),
        made=html.escape(_made(report)),
    )


def _made(report: AuditReport) -> str:
    when = "" if report.made_at is None else f", {report.made_at:%Y-%m-%d %H:%M} UTC"
    return f"gramfuse {report.gramfuse}, attacks: {report.effort}, {report.seconds:g} s{when}"


def _worst(report: AuditReport) -> str:
    worst = report.worst_leaving()
    if worst is None:
        return "<p>No attack on what leaves was measured. That is no sign that there is nothing to find.</p>"
    return f"<p>Of what leaves, most was found in <b>{html.escape(worst[0])}</b>: AUC {worst[1]:.3f}, ½ is chance.</p>"


def _findings(report: AuditReport) -> str:
    if not report.findings:
        return ""
    words = {"warn": "warns", "refuse": "refuses"}
    items = "".join(
        f'<li class="{finding.verdict}"><b>{words[finding.verdict]}</b> {html.escape(finding.told)} '
        f"<code>{html.escape(finding.threshold)}</code></li>"
        for finding in report.findings
    )
    return f'<ul class="findings">{items}</ul>'


def _figure(plot: Plot) -> str:
    title = html.escape(plot.title)
    return (
        f'<figure role="img" aria-label="{html.escape(f"{plot.title}. {plot.told}")}"><figcaption>{title}</figcaption>'
        f"{plot.svg}</figure>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that becomes a list of its rows where the page is narrow."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    lines = "".join(f"<tr>{''.join(_cell(*pair) for pair in zip(columns, row, strict=True))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(column: str, value: str) -> str:
    kinds = {"leaves": "fate leaves", "stays": "fate stays"}
    kind = "number" if column in _NUMBERS else kinds.get(value, "") if not column else ""
    return f'<td class="{kind}" data-of="{html.escape(column)}">{_broken(value)}</td>'


def _broken(value: str) -> str:
    """Escape a text, in which long names of tensors may be broken behind a dot."""
    return re.sub(r"\.(?=[^\s.\d])", ".<wbr>", html.escape(value))


def _items(told: Iterable[str]) -> str:
    return "".join(f"<li>{html.escape(one)}</li>" for one in told)


def _paragraphs(told: Iterable[str]) -> str:
    return "".join(f"<p>{html.escape(one)}</p>" for one in told)


def _nothing(told: str) -> str:
    return f"<p>{html.escape(told)}</p>"


def _definitions(values: dict[str, object]) -> str:
    return "".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(str(value))}</code></dd>"
        for name, value in values.items()
        if value is not None
    )
