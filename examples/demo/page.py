"""Writes the report as one self-contained page: what was done, the picture, the table, the times."""

import html
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from string import Template

from picture import draw, mark
from report import COLUMNS, OWN, ROWS, TITLES, Report, sentences
from settings import DOMAINS, HERE, UNSEEN


def write_page(report: Report, path: Path) -> None:
    """Fill the template. The page needs no other file, and follows the reader's width and color scheme."""
    page = Template((HERE / "report.html.template").read_text(encoding="utf-8"))
    path.write_text(page.substitute(_parts(report)), encoding="utf-8")


def _parts(report: Report) -> Mapping[str, str]:
    domains = "".join(
        f"<dt>{html.escape(domain.name)}</dt><dd>{html.escape(domain.description)}</dd>"
        for domain in (*DOMAINS, UNSEEN)
    )
    told = "\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences(report))
    return {
        "kind": "result" if report.means_something else "result warning",
        "result": told,
        "picture": draw(report),
        "table": _table(report),
        "domains": domains,
        "times": _times(report),
        "environment": html.escape(_environment()),
    }


def _table(report: Report) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in COLUMNS)
    lines = [f'<thead><tr><th scope="col">model</th>{head}</tr></thead><tbody>']
    for row in ROWS:
        swatch = f'<svg width="14" height="14" aria-hidden="true">{mark(row)}</svg>'
        cells = "".join(f"<td{_best(report, row, column)}>{report.score(row, column):.1f}</td>" for column in COLUMNS)
        kind = "merged" if row not in OWN else "own"
        lines.append(f'<tr class="{kind}"><th scope="row">{swatch}{html.escape(TITLES[row])}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>"])


def _best(report: Report, row: str, column: str) -> str:
    return ' class="best"' if report.is_best(row, column) else ""


def _times(report: Report) -> str:
    longest, together = max(report.seconds.values()), sum(report.seconds.values())
    rows = [
        f'<tr><th scope="row">{html.escape(name)}</th><td>{seconds:.1f} s</td>'
        f'<td class="bar"><svg width="100%" height="10" aria-hidden="true">'
        f'<rect width="{100 * seconds / max(longest, 0.1):.1f}%" height="10" rx="2"/></svg></td></tr>'
        for name, seconds in report.seconds.items()
    ]
    total = f'<tr class="total"><th scope="row">together</th><td>{together:.1f} s</td><td class="bar"></td></tr>'
    return "\n".join([*rows, total])


def _environment() -> str:
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("gramfuse", "torch", "transformers")]
    return ", ".join([*libraries, f"Python {platform.python_version()}", f"{os.cpu_count()} CPU cores"])
