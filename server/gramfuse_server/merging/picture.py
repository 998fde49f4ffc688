"""Draw what a merge tells of its layers as one SVG: the same layers give the same bytes.

By hand: a plotting library took longer for three tables of coloured cells than a small merge does for its arithmetic.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

from gramfuse_shared.contract.diagnostics import Layer
from gramfuse_shared.reporting.layer_grid import (
    CONDITION,
    DISTANCE,
    GAINED,
    NO_LAYER,
    LayerGrid,
    Measure,
    Range,
    grid_of,
    range_of,
)

_MOST_WRITTEN: Final = 14
"""Columns up to which cells have room for their value."""
_MOST_NUMBERED: Final = 25
"""Columns up to which each has its number."""
_MOST_DIGITS: Final = 8
_DARK_SHARE: Final = 0.55
"""Where these colours turn dark, and text on them white."""

# ColorBrewer's YlGnBu, YlOrBr and BuPu of nine colours
_COLOURS: Final = (
    (GAINED, "ffffd9 edf8b1 c7e9b4 7fcdbb 41b6c4 1d91c0 225ea8 253494 081d58"),
    (CONDITION, "ffffe5 fff7bc fee391 fec44f fe9929 ec7014 cc4c02 993404 662506"),
    (DISTANCE, "f7fcfd e0ecf4 bfd3e6 9ebcda 8c96c6 8c6bb1 88419d 810f7c 4d004b"),
)
_INK: Final = "#24292f"
_FAINT: Final = "#6e7781"
_ALARM: Final = "#cf222e"

# pixels
_CHARACTER: Final = 6.2
"""Of the widest letters' average, for names beside the rows and in the title."""
_TITLE_CHARACTER: Final = 10.0
_PANEL_TITLE_CHARACTER: Final = 7.6
_ROW: Final = 22.0
_MARGIN: Final = 12.0
_HEAD: Final = 34.0
_PANEL_HEAD: Final = 22.0
_PANEL_FOOT: Final = 44.0
_BAR: Final = 12.0
_BAR_STEPS: Final = 24
_BAR_NAMES: Final = 76.0


@dataclass(frozen=True, slots=True)
class _Panel:
    """One figure of all layers, and its colours from the lowest to the highest."""

    measure: Measure
    colours: tuple[str, ...]
    grid: LayerGrid
    values: dict[tuple[int, int], float]
    range: Range

    @property
    def height(self) -> float:
        return _PANEL_HEAD + _ROW * len(self.grid.rows) + _PANEL_FOOT

    def colour_at(self, share: float) -> str:
        place = min(max(share, 0.0), 1.0) * (len(self.colours) - 1)
        below = min(int(place), len(self.colours) - 2)
        lower, upper = (bytes.fromhex(colour) for colour in self.colours[below : below + 2])
        mixed = (round(one + (place - below) * (other - one)) for one, other in zip(lower, upper, strict=True))
        return f"#{bytes(mixed).hex()}"


@dataclass(slots=True)
class _Drawing:
    """Elements so far."""

    elements: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, content: str, *, size: int, colour: str, anchor: str = "start", bold: bool = False
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
        self.elements.append(f"<text {where}{weight}>{escape(content)}</text>")

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.elements.append(f'<rect {place} fill="{colour}"/>')

    def cross(self, x: float, y: float) -> None:
        path = f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"
        for colour, width in (("white", 3), (_ALARM, 1.2)):
            self.elements.append(f'<path d="{path}" stroke="{colour}" stroke-width="{width}"/>')

    def written(self, width: float, height: float) -> bytes:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="DejaVu Sans, Verdana, Arial, sans-serif">'
        )
        lines = ["<?xml version='1.0' encoding='utf-8'?>", head, *self.elements, "</svg>", ""]
        return "\n".join(lines).encode()


def draw(layers: Sequence[Layer], title: str) -> bytes | None:
    """Return an SVG of all figures that the layers have; None if they have none."""
    panels = list(_panels(layers))
    if not panels:
        return None
    columns = max(len(panel.grid.columns) for panel in panels)
    cell = 46.0 if columns <= _MOST_WRITTEN else max(4.0, min(26.0, 800.0 / columns))
    left = _MARGIN + 8 + _CHARACTER * max(len(name) for panel in panels for name in panel.grid.rows)
    right = left + cell * columns + 12
    width = max(
        right + _BAR + _BAR_NAMES,
        2 * _MARGIN + _TITLE_CHARACTER * len(title),
        left + max(_PANEL_TITLE_CHARACTER * len(panel.measure.title) for panel in panels) + _MARGIN,
    )
    drawing = _Drawing()
    drawing.box(0, 0, width, _HEAD + sum(panel.height for panel in panels), "white")
    drawing.text(_MARGIN, _HEAD - 12, title, size=14, colour=_INK, bold=True)
    top = _HEAD
    for panel in panels:
        _draw_panel(drawing, panel, top, left=left, cell=cell)
        _draw_bar(drawing, panel, top + _PANEL_HEAD, right)
        top += panel.height
    return drawing.written(width, top)


def _panels(layers: Sequence[Layer]) -> Iterator[_Panel]:
    for measure, colours in _COLOURS:
        grid = grid_of(layers, measure)
        if grid is not None:
            values = grid.values(measure)
            yield _Panel(measure, tuple(colours.split()), grid, values, range_of(values.values(), measure.scale))


def _draw_panel(drawing: _Drawing, panel: _Panel, top: float, *, left: float, cell: float) -> None:
    grid = panel.grid
    first = top + _PANEL_HEAD
    drawing.text(left, top + 12, panel.measure.title, size=12, colour=_INK)
    for row, name in enumerate(grid.rows):
        drawing.text(left - 8, first + _ROW * (row + 0.5) + 4, name, size=11, colour=_FAINT, anchor="end")
    place_of = {column: place for place, column in enumerate(grid.columns)}
    for (row, column), value in panel.values.items():
        x, y = left + cell * place_of[column], first + _ROW * row
        share = panel.range.share_of(value)
        drawing.box(x, y, cell - 1, _ROW - 1, panel.colour_at(share))
        fell_back = any(layer.fallback != "none" for layer in grid.cells[row, column])
        centre = (x + cell / 2, y + _ROW / 2)
        if len(grid.columns) <= _MOST_WRITTEN:
            is_dark = share > _DARK_SHARE
            colour = _ALARM if fell_back and not is_dark else "white" if is_dark else _INK
            text = panel.measure.written(value) + (" ×" if fell_back else "")
            drawing.text(centre[0], centre[1] + 3, text, size=9, colour=colour, anchor="middle")
        elif fell_back:
            drawing.cross(*centre)
    below = first + _ROW * len(grid.rows) + 12
    step = max(1, math.ceil(len(grid.columns) / _MOST_NUMBERED))
    for place, column in enumerate(grid.columns):
        if column == NO_LAYER or place % step == 0:
            name = "–" if column == NO_LAYER else str(column)[:_MOST_DIGITS]
            drawing.text(left + cell * (place + 0.5), below, name, size=10, colour=_FAINT, anchor="middle")
    outside = " (–: in none)" if NO_LAYER in grid.columns else ""
    middle = left + cell * len(grid.columns) / 2
    drawing.text(middle, below + 14, f"layer{outside}", size=10, colour=_FAINT, anchor="middle")


def _draw_bar(drawing: _Drawing, panel: _Panel, top: float, x: float) -> None:
    """Show the colours from the highest down, and the values of the first, the middle and the last."""
    height = max(_ROW * len(panel.grid.rows) - 1, 3 * 12)
    step = height / _BAR_STEPS
    for number in range(_BAR_STEPS):
        share = 1 - (number + 0.5) / _BAR_STEPS
        drawing.box(x, top + step * number, _BAR, step + 0.2, panel.colour_at(share))
    for share in (0.0, 0.5, 1.0):
        written = panel.measure.written(panel.range.value_at(share))
        drawing.text(x + _BAR + 5, top + (1 - share) * (height - 8) + 8, written, size=9, colour=_FAINT)
