"""One picture: the rows beside each other, and RegMean by α and by batches, with standard errors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from benchmarks.paper.page import IN, OUT, ordered
from benchmarks.paper.results import Results

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLORS: Final = {IN: "#1f5fae", OUT: "#d07a1c"}
SWEEPS: Final = (
    ("btc.alpha", "α = ", "RegMean by α"),
    ("btc.batches", "batches: ", "RegMean by batches measured"),
    ("btc.greedy", "cohort of ", "RegMean by organizations, chosen greedily"),
)
WORDS: Final = {IN: "in-domain", OUT: "out-of-domain"}


def draw(results: Results, target: Path) -> None:
    """Draw what the results hold of the main table and the two sweeps."""
    plt.rcParams |= {"svg.hashsalt": "gramfuse", "svg.fonttype": "none", "font.size": 10}
    sweeps = [sweep for sweep in SWEEPS if sweep[0] in results]
    heights = ([5.0] if "btc" in results else []) + ([3.5] if sweeps else []) or [1.0]  # results may hold neither
    figure = plt.figure(figsize=(10, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), max(len(sweeps), 1), height_ratios=heights)
    if "btc" in results:
        _draw_rows(figure.add_subplot(grid[0, :]), results["btc"])
    for place, (setting, prefix, title) in enumerate(sweeps):
        rows = {name.removeprefix(prefix): row for name, row in results[setting].items()}
        _draw_sweep(figure.add_subplot(grid[-1, place]), rows, title)
    figure.savefig(target, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def _draw_rows(axis: Axes, rows: Mapping[str, Any]) -> None:
    names = ordered(rows)[::-1]
    for shift, column in ((0.2, IN), (-0.2, OUT)):
        found = [(place + shift, rows[name][column]) for place, name in enumerate(names) if column in rows[name]]
        axis.errorbar(
            [one["mean"] for _, one in found],
            [place for place, _ in found],
            xerr=[one["se"] or 0 for _, one in found],
            fmt="o",
            capsize=3,
            color=COLORS[column],
            label=WORDS[column],
        )
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="entity F1 in percent, mean ± standard error", title="Broad Twitter Corpus; WNUT17 held out")
    axis.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)


def _draw_sweep(axis: Axes, rows: Mapping[str, Any], title: str) -> None:
    for column in (IN, OUT):
        found = [row[column] for row in rows.values() if column in row]
        if found:
            axis.errorbar(
                range(len(found)),
                [one["mean"] for one in found],
                yerr=[one["se"] or 0 for one in found],
                marker="o",
                capsize=3,
                color=COLORS[column],
                label=WORDS[column],
            )
    axis.set_xticks(range(len(rows)), list(rows))
    axis.set(title=title, ylabel="entity F1 in percent")
    axis.grid(visible=True, color="#dddddd", linewidth=0.6)
