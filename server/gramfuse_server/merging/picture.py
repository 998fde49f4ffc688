"""Draw what a merge tells of its layers as one SVG: the same layers give the same bytes."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure

from gramfuse_shared.contract.diagnostics import Layer
from gramfuse_shared.reporting.layers import number

MAX_ROWS: Final = 24
"""Kinds of layers; a model with more shows those with the most layers."""

MAX_COLUMNS: Final = 200
"""Layers; where there are more, neighbours share a cell."""

CAPTION: Final = (
    "Kinds of layers by their number. Where a cell stands for several entries (experts, or neighbours where layers are "
    "very many), it shows the lowest gain, the highest condition, the largest distance. ×: the method could not be "
    "followed there, the table above says why. White: there is no such figure."
)

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
_NO_LAYER: Final = -1
_MOST_WRITTEN: Final = 14
"""Columns up to which cells have room for their value."""

_MOST_CHARACTERS: Final = 44
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


_Scale: TypeAlias = Literal["even", "magnitude", "root"]


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    value_of: Callable[[Layer], float | None]
    worst: Callable[[Sequence[float]], float]
    written: Callable[[float], str]
    colours: str
    scale: _Scale


_PANELS: Final = (
    _Panel(
        "Gained over the average: share of RegMean's objective",
        lambda layer: layer.gained, min, lambda value: f"{value:z.0%}", "YlGnBu", scale="even",
    ),
    _Panel(
        "Condition number of the solved system, at least",
        lambda layer: layer.condition, max, number, "YlOrBr", scale="magnitude",
    ),
    _Panel(
        "Distance of the farthest contribution, ‖Wᵢ − W‖/‖W‖",
        lambda layer: layer.spread.largest if layer.spread else None, max, lambda value: f"{value:.1%}", "BuPu",
        scale="root",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Grid:
    """Entries by kind (rows) and layer number (columns)."""

    rows: tuple[str, ...]
    columns: tuple[int, ...]
    cells: dict[tuple[int, int], list[Layer]]


def draw(layers: Sequence[Layer], title: str) -> bytes | None:
    """Return an SVG of all figures that the layers have; None if they have none."""
    panels = [panel for panel in _PANELS if any(panel.value_of(layer) is not None for layer in layers)]
    if not panels:
        return None
    kind_of = _kinds(layers)
    grids = [_grid([layer for layer in layers if panel.value_of(layer) is not None], kind_of) for panel in panels]
    columns = max(len(grid.columns) for grid in grids)
    heights = [0.27 * len(grid.rows) + 0.75 for grid in grids]
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type] # its keys are among the known ones
        figure = Figure(figsize=(min(max(0.52 * columns, 4.4), 9.0) + 3.4, sum(heights) + 0.5), layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, panel, grid in zip(axes, panels, grids, strict=True):
            _draw_panel(figure, axis, panel, grid)
        target = io.BytesIO()
        figure.savefig(target, format="svg", facecolor="white", metadata={"Date": None, "Creator": "gramfuse"})
    return target.getvalue()


def _draw_panel(figure: Figure, axis: Axes, panel: _Panel, grid: _Grid) -> None:
    values = {
        place: panel.worst([value for layer in layers if (value := panel.value_of(layer)) is not None])
        for place, layers in grid.cells.items()
    }
    norm = _norm(list(values.values()), panel.scale)
    table = [[values.get((row, column), math.nan) for column in grid.columns] for row in range(len(grid.rows))]
    mesh = axis.pcolormesh(table, norm=norm, cmap=panel.colours, edgecolors="white", linewidth=_gap(grid))
    axis.set_title(panel.title, loc="left", fontsize=10, color=_INK)
    axis.invert_yaxis()
    axis.tick_params(length=0, colors=_FAINT)
    axis.set_yticks([row + 0.5 for row in range(len(grid.rows))], grid.rows)
    step = max(1, math.ceil(len(grid.columns) / 25))
    shown = [place for place, column in enumerate(grid.columns) if column == _NO_LAYER or place % step == 0]
    names = ["–" if grid.columns[place] == _NO_LAYER else str(grid.columns[place])[:_MOST_DIGITS] for place in shown]
    axis.set_xticks([place + 0.5 for place in shown], names)
    axis.set_xlabel("layer" + (" (–: in none)" if _NO_LAYER in grid.columns else ""), color=_FAINT, fontsize=8)
    bar = figure.colorbar(mesh, ax=axis, pad=0.015, fraction=0.03, aspect=12)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=_FAINT, labelsize=7)
    bar.ax.minorticks_off()
    bar.set_ticks(_ticks(norm), labels=[panel.written(value) for value in _ticks(norm)])
    _mark(axis, panel, grid, values, norm)


def _mark(axis: Axes, panel: _Panel, grid: _Grid, values: dict[tuple[int, int], float], norm: Normalize) -> None:
    """Write values where there is room, and a cross where the method could not be followed."""
    has_room = len(grid.columns) <= _MOST_WRITTEN
    for (row, column), value in values.items():
        x, y = grid.columns.index(column) + 0.5, row + 0.5
        fell_back = any(layer.fallback != "none" for layer in grid.cells[row, column])
        if has_room:
            is_dark = float(norm(value)) > 0.55  # noqa: PLR2004 - where these maps turn dark
            text = panel.written(value) + (" ×" if fell_back else "")
            colour = _ALARM if fell_back and not is_dark else "white" if is_dark else _INK
            axis.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
        elif fell_back:
            axis.plot(x, y, marker="x", color="white", markersize=6, markeredgewidth=3)
            axis.plot(x, y, marker="x", color=_ALARM, markersize=4, markeredgewidth=1.2)


def _gap(grid: _Grid) -> float:
    most = 30
    return 1.5 if len(grid.columns) <= most else 0.4


def _norm(values: Sequence[float], scale: _Scale) -> Normalize:
    """Spread the colours: gains evenly, conditions by their magnitude, distances by their root, as one may be huge."""
    if scale == "magnitude":
        return LogNorm(1.0, max(10.0, *values))
    high = max(0.01, *values)
    return PowerNorm(0.5, 0.0, high) if scale == "root" else Normalize(min(0.0, *values), high)


def _ticks(norm: Normalize) -> list[float]:
    """Return the values of the first, the middle and the last colour."""
    return [float(norm.inverse(level)) for level in (0.0, 0.5, 1.0)]


def _grid(layers: Sequence[Layer], kind_of: Mapping[str, str]) -> _Grid:
    """Sort entries into rows of one kind: names that differ in numbers only, or that are solved together somewhere."""
    places: dict[str, list[tuple[int, Layer]]] = {}
    for layer in layers:
        found = _NUMBER.search(layer.parameters[0])
        place = _NO_LAYER if found is None else int(found[0])
        places.setdefault(kind_of[_pattern(layer.parameters[0])], []).append((place, layer))
    most = sorted(places, key=lambda kind: -len({number for number, _ in places[kind]}))[:MAX_ROWS]
    kinds = [kind for kind in dict.fromkeys(kind_of.values()) if kind in most]
    column_of = _columns({place for kind in kinds for place, _ in places[kind]})
    cells: dict[tuple[int, int], list[Layer]] = {}
    for row, kind in enumerate(kinds):
        for place, layer in places[kind]:
            cells.setdefault((row, column_of[place]), []).append(layer)
    numbers = sorted({column for _, column in cells if column != _NO_LAYER})
    outside = [_NO_LAYER] if any(column == _NO_LAYER for _, column in cells) else []
    return _Grid(_titles(kinds, kind_of), (*numbers, *outside), cells)


def _columns(places: set[int]) -> dict[int, int]:
    """Give each layer's number its column: its own, or where there are too many the first of its neighbours."""
    numbers = sorted(places - {_NO_LAYER})
    several = math.ceil(len(numbers) / MAX_COLUMNS)
    column_of = {number: numbers[rank - rank % several] for rank, number in enumerate(numbers)}
    return column_of | {_NO_LAYER: _NO_LAYER}


def _kinds(layers: Sequence[Layer]) -> dict[str, str]:
    """Give each pattern of names its kind, the first of the patterns that it is solved together with."""
    kind_of: dict[str, str] = {}
    for layer in layers:
        patterns = list(dict.fromkeys(_pattern(name) for name in layer.parameters))
        known = list(dict.fromkeys(kind_of[pattern] for pattern in patterns if pattern in kind_of))
        kind = known[0] if known else patterns[0]
        for pattern in patterns:
            kind_of[pattern] = kind
        for pattern, other in kind_of.items():
            if other in known:
                kind_of[pattern] = kind
    return kind_of


def _pattern(name: str) -> str:
    return _NUMBER.sub("*", name)


def _titles(kinds: Sequence[str], kind_of: Mapping[str, str]) -> tuple[str, ...]:
    """Name kinds in few words; where two would be called the same, with what stands before the layer's number."""
    titles = [_title([name for name, other in kind_of.items() if other == kind]) for kind in kinds]
    return tuple(
        f"{kind.split('.', 1)[0]}: {title}" if titles.count(title) > 1 else title
        for kind, title in zip(kinds, titles, strict=True)
    )


def _title(patterns: Sequence[str]) -> str:
    """Name a kind by what stands behind the layer's number; of several names the part that they do not share."""
    names = [pattern.removesuffix(".weight").removesuffix(".*").split(".*.", 1)[-1] for pattern in patterns]
    parts = [name.replace("*.", "").split(".") for name in names]
    same = 0
    while all(len(part) > same + 1 for part in parts) and len({tuple(part[: same + 1]) for part in parts}) == 1:
        same += 1
    tails = list(dict.fromkeys(".".join(part[same:]) for part in parts))
    text = ".".join([*parts[0][:same], tails[0] if len(tails) == 1 else "{" + ", ".join(tails) + "}"])
    return text if len(text) <= _MOST_CHARACTERS else "…" + text[-_MOST_CHARACTERS + 1 :]
