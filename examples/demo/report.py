"""What came out: as a table on the terminal and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from settings import DOMAINS, REGMEAN, SIMPLE, SIZES, UNSEEN

AVERAGE: Final = "average"
OWN = tuple(domain.name for domain in DOMAINS)
ROWS: Final = (*OWN, SIMPLE, REGMEAN)
COLUMNS: Final = (*OWN, AVERAGE, UNSEEN.name)
TITLES: Final[Mapping[str, str]] = {
    **{name: f"{name}'s own model" for name in OWN},
    SIMPLE: "simple average",
    REGMEAN: "RegMean",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Entity F1 in percent by model and test set, and the seconds of each stage."""

    size: str
    scores: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]

    @property
    def means_something(self) -> bool:
        """Whether enough was trained for the scores to be worth a look."""
        return self.size == "full"

    def score(self, row: str, column: str) -> float:
        """One cell of the table; the average is over the participants' domains, not the unseen one."""
        if column == AVERAGE:
            return sum(self.scores[row][name] for name in OWN) / len(OWN)
        return self.scores[row][column]

    def is_best(self, row: str, column: str) -> bool:
        """Whether a row has a column's highest score, as printed; nobody has where all are equal."""
        shown = {name: round(self.score(name, column), 1) for name in ROWS}
        return shown[row] == max(shown.values()) > min(shown.values())

    def best_own(self, column: str) -> str:
        """The organization whose own model has a column's highest score."""
        return max(OWN, key=lambda row: self.score(row, column))


def print_table(report: Report, console: Console) -> None:
    """Print the scores, each column's best in bold, and what they say."""
    table = Table(title="Entity F1 in percent", title_justify="left", header_style="bold")
    table.add_column("model")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in ROWS:
        cells = (
            f"[bold]{report.score(row, column):.1f}[/]"
            if report.is_best(row, column)
            else f"{report.score(row, column):.1f}"
            for column in COLUMNS
        )
        table.add_row(TITLES[row], *cells, end_section=row == OWN[-1])
    console.print()
    console.print(table)
    for sentence in sentences(report):
        console.print(sentence)


def sentences(report: Report) -> list[str]:
    """Say in words what the table shows, as it came out."""
    if not report.means_something:
        size = SIZES[report.size]
        trained = f"a {report.size} run trains on {size.train_sentences} sentences per organization"
        return [
            f"These scores mean nothing: {trained} and tests on {size.test_sentences}.",
            "Its models have learned next to nothing, so zeros are expected.",
            "What it shows is that every step works; without DEMO_SIZE the demo trains in earnest.",
        ]
    return [
        f"{where}, RegMean has {report.score(REGMEAN, column):.1f}; the simple average "
        f"{report.score(SIMPLE, column):.1f}; the best single model ({report.best_own(column)}'s) "
        f"{report.score(report.best_own(column), column):.1f}."
        for where, column in (
            ("On average over the three domains", AVERAGE),
            (f"On {UNSEEN.name}, which nobody trained on", UNSEEN.name),
        )
    ]


def write_summary(report: Report, path: Path) -> None:
    """Write `{"domains": [...], "scores": {row: {column: F1}}, "seconds": {stage: s}}`."""
    summary = {
        "size": report.size,
        "domains": [*OWN, UNSEEN.name],
        "scores": {row: {column: round(report.score(row, column), 2) for column in COLUMNS} for row in ROWS},
        "seconds": dict(report.seconds),
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
