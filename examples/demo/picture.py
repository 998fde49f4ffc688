"""Draws the scores: one line per test set, one mark per model, in the colors and at the width of the page around it.

Places are percentages of the width, so that text keeps its size on a phone; colors are the page's CSS classes.
"""

import html
import math
from collections.abc import Iterator, Mapping
from typing import Final

from report import COLUMNS, ROWS, TITLES, Report
from settings import REGMEAN

MARKS: Final[Mapping[str, str]] = {
    "btc-f": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "btc-g": "M-4.5-4.5h9v9h-9z",
    "btc-h": "M0-6 6 0 0 6-6 0z",
}
MERGED_MARK: Final = "M-6.5 0a6.5 6.5 0 1 0 13 0a6.5 6.5 0 1 0-13 0z"
STEPS: Final = (1, 2, 5, 10, 20)
MOST_TICKS: Final = 7  # more would not fit a phone


def mark(row: str, at: str = "50%", y: str = "50%", title: str = "") -> str:
    """One model's mark, at a place of the enclosing SVG."""
    path = MARKS.get(row, MERGED_MARK)
    told = f"<title>{html.escape(title)}</title>" if title else ""
    return f'<svg x="{at}" y="{y}" overflow="visible" class="mark {row}">{told}<path d="{path}"/></svg>'


def draw(report: Report) -> str:
    """The legend, a line of marks per test set, and the axis, as HTML with inline SVG."""
    ticks = _ticks(report)
    legend = "".join(
        f'<li><svg width="14" height="14" aria-hidden="true">{mark(row)}</svg>{html.escape(TITLES[row])}</li>'
        for row in ROWS
    )
    return "\n".join([f'<ul class="legend">{legend}</ul>', '<div class="plot">', *_lines(report, ticks), "</div>"])


def _lines(report: Report, ticks: list[int]) -> Iterator[str]:
    grid = "".join(f'<line class="grid" x1="{p}" x2="{p}" y1="0" y2="100%"/>' for p in (_at(t, ticks) for t in ticks))
    for column in COLUMNS:
        values = {row: report.score(row, column) for row in ROWS}
        low, high, merged = (
            _at(value, ticks) for value in (min(values.values()), max(values.values()), values[REGMEAN])
        )
        told = ", ".join(f"{TITLES[row]} {value:.1f}" for row, value in values.items())
        marks = "".join(
            mark(row, _at(value, ticks), "28", f"{TITLES[row]} on {column}: {value:.1f}")
            for row, value in values.items()
        )
        yield (
            f"<span>{html.escape(column)}</span>"
            f'<svg height="44" role="img" aria-label="{html.escape(f"{column}: {told}")}">{grid}'
            f'<line class="span" x1="{low}" x2="{high}" y1="28" y2="28"/>{marks}'
            f'<text class="value" x="{merged}" y="14">{values[REGMEAN]:.1f}</text></svg>'
        )
    numbers = "".join(f'<text x="{_at(tick, ticks)}" y="14">{tick}</text>' for tick in ticks)
    yield f'<span></span><svg height="20" aria-hidden="true">{numbers}</svg>'


def _ticks(report: Report) -> list[int]:
    """Round numbers around all scores, few enough for a narrow page."""
    scores = [report.score(row, column) for row in ROWS for column in COLUMNS]
    if min(scores) == max(scores):
        return [0, 20, 40, 60, 80, 100]
    for step in STEPS:
        ticks = list(range(math.floor(min(scores) / step) * step, math.ceil(max(scores) / step) * step + 1, step))
        if len(ticks) <= MOST_TICKS:
            break
    return ticks


def _at(value: float, ticks: list[int]) -> str:
    return f"{100 * (value - ticks[0]) / (ticks[-1] - ticks[0]):.2f}%"
