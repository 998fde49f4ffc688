"""docs/results.md: the tables, and in words which differences lie beyond two standard errors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.paper.results import Results, difference, is_claimed

BEGIN, END = "<!-- measured: written by `make paper` -->", "<!-- end of measured -->"
IN, OUT = "in_domain", "out_of_domain"
TITLES: Final[Mapping[str, str]] = {
    "btc": "Different domains: Broad Twitter Corpus b, f, g, h; held out: WNUT17",
    "btc.refit": "The same with refits of every layer; trained, measured and merged on two CPU cores",
    "btc.deltas": "Methods that add differences to the base, λ chosen on dev sets",
    "btc.alpha": "RegMean by α",
    "btc.batches": "RegMean, α = 0.9, by the batches of 32 sentences that each organization measures",
    "btc.pairs": "Two at a time: means over the six pairs, in-domain the pair's own two",
    "btc.greedy": "Cohorts by greedy search with RegMean, on dev sets; the best of each round, if it helped or not",
    "btc.own_heads": "The same, each organization with a task head that it drew itself",
    "goemotions.key_class": "Non-i.i.d. partitions of one data set: GoEmotions, 80 % of each one class",
    "tasks": "Different tasks, private heads: entities of sections F and H, and emotions, each under its own head",
}
ORDER: Final = (
    "Avg.",
    "Best",
    "Ensemble",
    "Simple",
    "Task arithmetic",
    "TIES",
    "Fisher",
    "RegMean",
    "RegMean gradient-weighted",
    "RegMean gradient-weighted + calibration",
    "RegMean++",
    "RegMean++ gradient-weighted",
    "+ head",
    "+ calibration",
    "RegMean + refit",
    "RegMean + refit + head",
    "Domain-specific",
    "Multi-task",
)
PICTURE: Final = "![Entity F1 of every row with standard errors; RegMean by α and by batches](results.svg)"
COMPARED: Final = (
    "RegMean",
    "RegMean gradient-weighted",
    "RegMean++",
    "RegMean++ gradient-weighted",
    "+ calibration",
    "RegMean + refit",
    "RegMean + refit + head",
)
REFERENCES: Final = ("Simple", "Best", "Domain-specific")


def markdown(results: Results) -> str:
    """All tables, each with the differences of RegMean's rows from what they are compared with."""
    parts = []
    for setting, rows in results.items():
        seeds = len(next(iter(rows.values()))[IN]["by_seed"])
        parts += [f"### {TITLES.get(setting, setting)}", "", *_table(rows), ""]
        parts += [f"Seeds: {seeds}. Entity or macro F1 and average precision in percent, mean ± standard error.", ""]
        if found := _differences(rows):
            parts += [*found, ""]
    return "\n".join([*parts, PICTURE, ""])


def write_page(results: Results, page: Path) -> None:
    """Put the tables between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{markdown(results)}{END}{after}", encoding="utf-8")


def ordered(rows: Mapping[str, Any]) -> list[str]:
    """The rows in the paper's order; those that it does not have stay as they come, behind."""
    return sorted(rows, key=lambda row: ORDER.index(row) if row in ORDER else len(ORDER))


def _table(rows: Mapping[str, Any]) -> list[str]:
    columns = [column for column in (IN, OUT) if any(column in row for row in rows.values())]
    words = {IN: "in-domain", OUT: "out-of-domain"}
    heads = [f"{words[column]} {measure}" for column in columns for measure in ("F1", "AP")]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in ordered(rows):
        cells = []
        for column in columns:
            found = rows[name].get(column)
            cells += [_cell(found), _cell(found["average_precision"])] if found else ["–", "–"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cell(found: Mapping[str, Any]) -> str:
    error = "" if found["se"] is None else f" ± {found['se']:.1f}"
    return f"{found['mean']:.1f}{error}"


def _differences(rows: Mapping[str, Any]) -> list[str]:
    lines = []
    for upper in COMPARED:
        for lower in REFERENCES:
            for column, words in ((IN, "in-domain"), (OUT, "out-of-domain")):
                if column in rows.get(upper, {}) and column in rows.get(lower, {}):
                    gap = difference(rows, upper, lower, column)
                    error = "one seed" if gap["se"] is None else f"± {gap['se']:.2f}"
                    verdict = "" if is_claimed(gap) else ": no difference is claimed"
                    lines.append(f"- {upper} − {lower}, {words} F1: {gap['mean']:+.2f} {error}{verdict}")
    return ["Differences, paired by seed:", "", *lines] if lines else []
