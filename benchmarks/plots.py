"""How the cost grows, from measured points: time by width, contributions, rows and depth, log-log, as one picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from collecting import BATCH, make_case
from merging import merge_ours, write_members
from timing import Effort, median_seconds

import gramfuse

mpl.use("svg")
from matplotlib import pyplot as plt

Points = dict[int, float]
PANELS = {
    "width": "merge of 4, one layer: width",
    "contributions": "merge, three BERT-base layers: contributions",
    "rows": "collecting, one BERT-base layer: rows",
    "depth": "collecting, MiniLM's shapes: layers",
}
_ORDERS = {"width": 3, "contributions": 1, "rows": 1, "depth": 1}


def measure(folder: Path, effort: Effort) -> dict[str, dict[str, float]]:
    """Measure the points: seconds by size."""
    small = effort.is_smoke
    rounds = 1 if small else 3
    found: dict[str, Points] = {name: {} for name in PANELS}
    for width in (32, 64) if small else (192, 384, 768, 1536):
        members = write_members(folder, 4, width=width, layers=1)
        run = {"merge": lambda members=members: merge_ours(members, folder / "plot")}
        found["width"][width] = median_seconds(run, rounds)["merge"]
    for count in (2, 4) if small else (2, 4, 8, 16):
        members = write_members(folder, count, width=32 if small else 768, layers=1 if small else 3)
        run = {"merge": lambda members=members: merge_ours(members, folder / "plot")}
        found["contributions"][count] = median_seconds(run, rounds)["merge"]
    for batches in (1, 2) if small else (1, 2, 4, 8):
        case = make_case("bert", effort, layers=1, batches=batches)
        rows = sum(int(batch["attention_mask"].sum()) for batch in case.batches)
        found["rows"][rows] = _collect_seconds(case, rounds)
    for depth in (1, 2) if small else (1, 2, 4, 8):
        found["depth"][depth] = _collect_seconds(make_case("distil", effort, layers=depth, batches=1), rounds)
    return {name: {str(size): seconds for size, seconds in points.items()} for name, points in found.items()}


def draw(growth: dict[str, dict[str, float]], target: Path) -> None:
    """Draw the points, each panel with a line of the order that the arithmetic has, through the last point."""
    plt.rcParams |= {"svg.hashsalt": "gramfuse", "svg.fonttype": "none", "font.size": 10}
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
        sizes = [int(size) for size in growth[name]]
        seconds = list(growth[name].values())
        order = _ORDERS[name]
        ideal = [seconds[-1] * (size / sizes[-1]) ** order for size in sizes]
        axis.loglog(sizes, ideal, color="#999999", linestyle="--", label=f"order {order}")
        axis.loglog(sizes, seconds, color="#1f5fae", marker="o", label="measured")
        axis.set(title=title, ylabel="seconds")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_yticks(seconds, [f"{value:.2g}" for value in seconds])
        axis.minorticks_off()
        axis.grid(visible=True, color="#dddddd", linewidth=0.6)
        axis.legend(frameon=False)
    figure.savefig(target, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def _collect_seconds(case: Any, rounds: int) -> float:  # noqa: ANN401 - collecting.Case
    def run() -> None:
        gramfuse.collect(case.model, case.texts, tokenizer=case.tokenizer, batch_size=BATCH, device="cpu")

    with torch.no_grad():
        return median_seconds({"collect": run}, rounds)["collect"]
