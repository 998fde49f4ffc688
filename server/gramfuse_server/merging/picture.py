"""Draw what a merge tells of its layers as one SVG: the same layers give the same bytes."""

import io
import math
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure

from gramfuse_shared.contract.diagnostics import Layer
from gramfuse_shared.reporting.layer_grid import (
    CONDITION,
    DISTANCE,
    GAINED,
    NO_LAYER,
    LayerGrid,
    Measure,
    Scale,
    grid_of,
)

_MOST_WRITTEN: Final = 14
"""Columns up to which cells have room for their value."""

_MOST_DIGITS: Final = 8

_STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "gramfuse",  # else identifiers are random
    "svg.fonttype": "path",  # looks alike wherever it is opened
    "font.family": "DejaVu Sans",  # comes with the library
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.spines.left": False,
}
_INK: Final = "#24292f"
_FAINT: Final = "#6e7781"
_ALARM: Final = "#cf222e"


_COLOURS: Final = ((GAINED, "YlGnBu"), (CONDITION, "YlOrBr"), (DISTANCE, "BuPu"))


def draw(layers: Sequence[Layer], title: str) -> bytes | None:
    """Return an SVG of all figures that the layers have; None if they have none."""
    found = [(measure, colours, grid_of(layers, measure)) for measure, colours in _COLOURS]
    panels = [(measure, colours, grid) for measure, colours, grid in found if grid is not None]
    if not panels:
        return None
    grids = [grid for *_, grid in panels]
    columns = max(len(grid.columns) for grid in grids)
    heights = [0.27 * len(grid.rows) + 0.75 for grid in grids]
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type] # its keys are among the known ones
        figure = Figure(figsize=(min(max(0.52 * columns, 4.4), 9.0) + 3.4, sum(heights) + 0.5), layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (measure, colours, grid) in zip(axes, panels, strict=True):
            _draw_panel(figure, axis, measure, grid, colours)
        target = io.BytesIO()
        figure.savefig(target, format="svg", facecolor="white", metadata={"Date": None, "Creator": "gramfuse"})
    return target.getvalue()


def _draw_panel(figure: Figure, axis: Axes, measure: Measure, grid: LayerGrid, colours: str) -> None:
    values = grid.values(measure)
    norm = _norm(list(values.values()), measure.scale)
    table = [[values.get((row, column), math.nan) for column in grid.columns] for row in range(len(grid.rows))]
    mesh = axis.pcolormesh(table, norm=norm, cmap=colours, edgecolors="white", linewidth=_gap(grid))
    axis.set_title(measure.title, loc="left", fontsize=10, color=_INK)
    axis.invert_yaxis()
    axis.tick_params(length=0, colors=_FAINT)
    axis.set_yticks([row + 0.5 for row in range(len(grid.rows))], grid.rows)
    step = max(1, math.ceil(len(grid.columns) / 25))
    shown = [place for place, column in enumerate(grid.columns) if column == NO_LAYER or place % step == 0]
    names = ["–" if grid.columns[place] == NO_LAYER else str(grid.columns[place])[:_MOST_DIGITS] for place in shown]
    axis.set_xticks([place + 0.5 for place in shown], names)
    axis.set_xlabel("layer" + (" (–: in none)" if NO_LAYER in grid.columns else ""), color=_FAINT, fontsize=8)
    bar = figure.colorbar(mesh, ax=axis, pad=0.015, fraction=0.03, aspect=12)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=_FAINT, labelsize=7)
    bar.ax.minorticks_off()
    bar.set_ticks(_ticks(norm), labels=[measure.written(value) for value in _ticks(norm)])
    _mark(axis, measure, grid, values, norm)


def _mark(axis: Axes, measure: Measure, grid: LayerGrid, values: dict[tuple[int, int], float], norm: Normalize) -> None:
    """Write values where there is room, and a cross where the method could not be followed."""
    has_room = len(grid.columns) <= _MOST_WRITTEN
    for (row, column), value in values.items():
        x, y = grid.columns.index(column) + 0.5, row + 0.5
        fell_back = any(layer.fallback != "none" for layer in grid.cells[row, column])
        if has_room:
            is_dark = float(norm(value)) > 0.55  # noqa: PLR2004 - where these maps turn dark
            text = measure.written(value) + (" ×" if fell_back else "")
            colour = _ALARM if fell_back and not is_dark else "white" if is_dark else _INK
            axis.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
        elif fell_back:
            axis.plot(x, y, marker="x", color="white", markersize=6, markeredgewidth=3)
            axis.plot(x, y, marker="x", color=_ALARM, markersize=4, markeredgewidth=1.2)


def _gap(grid: LayerGrid) -> float:
    most = 30
    return 1.5 if len(grid.columns) <= most else 0.4


def _norm(values: Sequence[float], scale: Scale) -> Normalize:
    """Spread the colours: gains evenly, conditions by their magnitude, distances by their root, as one may be huge."""
    if scale == "magnitude":
        return LogNorm(1.0, max(10.0, *values))
    high = max(0.01, *values)
    return PowerNorm(0.5, 0.0, high) if scale == "root" else Normalize(min(0.0, *values), high)


def _ticks(norm: Normalize) -> list[float]:
    """Return the values of the first, the middle and the last colour."""
    return [float(norm.inverse(level)) for level in (0.0, 0.5, 1.0)]
