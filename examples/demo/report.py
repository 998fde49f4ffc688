"""What came out: as a table on the terminal, as JSON, and as a page with a picture."""

import html
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from settings import DOMAINS, HERE, REGMEAN, SIMPLE, UNSEEN

AVERAGE: Final = "average"
OWN = tuple(domain.name for domain in DOMAINS)
ROWS: Final = (*OWN, SIMPLE, REGMEAN)
COLUMNS: Final = (*OWN, AVERAGE, UNSEEN.name)
TITLES: Final[Mapping[str, str]] = {
    **{name: f"{name}'s own model" for name in OWN},
    SIMPLE: "simple average",
    REGMEAN: "RegMean",
}
COLORS: Final[Mapping[str, str]] = {
    **dict(zip(OWN, ("#b7bcc6", "#8b919e", "#5f6675"), strict=True)),
    SIMPLE: "#2f6fb0",
    REGMEAN: "#d9482b",
}
MARKERS: Final[Mapping[str, str]] = {**dict(zip(OWN, "osD", strict=True)), SIMPLE: "o", REGMEAN: "o"}


@dataclass(frozen=True, slots=True)
class Report:
    """Entity F1 in percent by model and test set, and the seconds of each stage."""

    size: str
    scores: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]

    def score(self, row: str, column: str) -> float:
        """One cell of the table; the average is over the participants' domains, not the unseen one."""
        if column == AVERAGE:
            return sum(self.scores[row][name] for name in OWN) / len(OWN)
        return self.scores[row][column]

    def best(self, column: str) -> str:
        """The row with a column's highest score."""
        return max(ROWS, key=lambda row: self.score(row, column))

    def best_own(self, column: str) -> str:
        """The organization whose own model has a column's highest score."""
        return max(OWN, key=lambda row: self.score(row, column))


def print_table(report: Report, console: Console) -> None:
    """Print the scores; each column's best is bold."""
    table = Table(title="Entity F1 in percent", title_justify="left", header_style="bold")
    table.add_column("model")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in ROWS:
        cells = (f"{report.score(row, column):.1f}" for column in COLUMNS)
        marked = (f"[bold]{cell}[/]" if report.best(c) == row else cell for c, cell in zip(COLUMNS, cells, strict=True))
        table.add_row(TITLES[row], *marked, end_section=row == OWN[-1])
    console.print()
    console.print(table)
    console.print(" ".join(sentences(report)))


def sentences(report: Report) -> list[str]:
    """Say in words what the table shows, as it came out."""
    told = [
        f"{where}, RegMean has {report.score(REGMEAN, column):.1f}; the simple average "
        f"{report.score(SIMPLE, column):.1f}; the best single model ({report.best_own(column)}'s) "
        f"{report.score(report.best_own(column), column):.1f}."
        for where, column in (
            ("On average over the three domains", AVERAGE),
            (f"On {UNSEEN.name}, which nobody trained on", UNSEEN.name),
        )
    ]
    if report.size != "full":
        told.append("This was a smoke run on a handful of sentences: its scores mean nothing.")
    return told


def write_summary(report: Report, path: Path) -> None:
    """Write `{"domains": [...], "scores": {row: {column: F1}}, "seconds": {stage: s}}`."""
    summary = {
        "size": report.size,
        "domains": [*OWN, UNSEEN.name],
        "scores": {row: {column: round(report.score(row, column), 2) for column in COLUMNS} for row in ROWS},
        "seconds": dict(report.seconds),
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def write_page(report: Report, path: Path) -> None:
    """Write one self-contained page: what was done, the picture, the table, the times."""
    page = Template((HERE / "report.html.template").read_text(encoding="utf-8"))
    domains = "".join(
        f"<dt>{html.escape(domain.name)}</dt><dd>{html.escape(domain.description)}</dd>"
        for domain in (*DOMAINS, UNSEEN)
    )
    path.write_text(
        page.substitute(
            summary=" ".join(map(html.escape, sentences(report))),
            picture=_picture(report),
            table=_table(report),
            domains=domains,
            times=_times(report),
            environment=html.escape(_environment()),
        ),
        encoding="utf-8",
    )


def _table(report: Report) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in COLUMNS)
    lines = [f'<thead><tr><th scope="col">model</th>{head}</tr></thead><tbody>']
    for row in ROWS:
        swatch = f'<span class="swatch" style="background:{COLORS[row]}"></span>'
        cells = "".join(
            f'<td class="best">{report.score(row, column):.1f}</td>'
            if report.best(column) == row
            else f"<td>{report.score(row, column):.1f}</td>"
            for column in COLUMNS
        )
        kind = "merged" if row not in OWN else "own"
        lines.append(f'<tr class="{kind}"><th scope="row">{swatch}{html.escape(TITLES[row])}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>"])


def _times(report: Report) -> str:
    rows = [
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{s:.1f} s</td></tr>" for name, s in report.seconds.items()
    ]
    total = f"<tr class='total'><th scope='row'>together</th><td>{sum(report.seconds.values()):.1f} s</td></tr>"
    return "\n".join([*rows, total])


def _environment() -> str:
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("gramfuse", "torch", "transformers")]
    return ", ".join([*libraries, f"Python {platform.python_version()}", f"{os.cpu_count()} CPU cores"])


def _picture(report: Report) -> str:
    """Draw one line per test set and one mark per model, as SVG for a page."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gramfuse", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8.4, 3.9))
        axes = figure.add_axes((0.11, 0.13, 0.87, 0.73))
        for line, column in enumerate(COLUMNS):
            values = {row: report.score(row, column) for row in ROWS}
            axes.plot([min(values.values()), max(values.values())], [line, line], color="#d5d8de", lw=2, zorder=1)
            for row, value in values.items():
                merged = row not in OWN
                axes.scatter(
                    value, line, s=110 if merged else 58, color=COLORS[row], marker=MARKERS[row],
                    edgecolors="white", linewidths=1, zorder=4 if row == REGMEAN else 3 if merged else 2,
                    label=TITLES[row] if line == 0 else None,
                )  # fmt: skip
            axes.annotate(
                f"{values[REGMEAN]:.1f}", (values[REGMEAN], line), (0, 9), textcoords="offset points",
                ha="center", color=COLORS[REGMEAN], fontsize=9, fontweight="bold",
            )  # fmt: skip
        axes.set_yticks(range(len(COLUMNS)), COLUMNS)
        axes.set_ylim(len(COLUMNS) - 0.5, -0.6)
        axes.axhline(len(OWN) - 0.5, color="#e6e8ec", lw=1)
        axes.set_xlabel("entity F1, percent")
        axes.grid(axis="x", color="#eef0f3")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.legend(
            loc="upper center", ncols=len(ROWS), frameon=False, fontsize=9, handletextpad=0.1, columnspacing=1.2
        )
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    _, _, body = drawn.getvalue().partition("<svg")  # without the XML prologue, which HTML does not want
    return f'<svg role="img" aria-label="Entity F1 of each model on each domain"{body}'
