"""Heat maps of layers as tables: a cell's class says its colour, its text the figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gramfuse_shared.contract.diagnostics import Layer
from gramfuse_shared.reporting.layer_grid import (
    CONDITION,
    DISTANCE,
    GAINED,
    NO_LAYER,
    OWN,
    Measure,
    Scale,
    grid_of,
    range_of,
)

LEVELS: Final = 8
"""Colours of a map; the style sheet has one for each."""

_MAPS: Final = (("gained", GAINED), ("condition", CONDITION), ("distance", DISTANCE), ("own", OWN))


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, its colour from 0 to `LEVELS` − 1, and what it stands for."""

    text: str
    level: int
    name: str
    fell_back: bool


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One figure of all layers: a row for each kind, a column for each number; None where there is no such figure."""

    id: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def heat_maps(layers: Sequence[Layer]) -> list[HeatMap]:
    """Draw every figure that the layers have."""
    return [found for name, measure in _MAPS if (found := _heat_map(name, measure, layers)) is not None]


def level_of(value: float, values: Sequence[float], scale: Scale) -> int:
    """Return a value's colour among others."""
    return min(int(range_of(values, scale).share_of(value) * LEVELS), LEVELS - 1)


def _heat_map(name: str, measure: Measure, layers: Sequence[Layer]) -> HeatMap | None:
    grid = grid_of(layers, measure)
    if grid is None:
        return None
    values = grid.values(measure)
    everything = list(values.values())

    def cell(place: tuple[int, int]) -> Cell | None:
        entries = grid.cells.get(place)
        if entries is None:
            return None
        more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
        return Cell(
            text=measure.written(values[place]),
            level=level_of(values[place], everything, measure.scale),
            name=f"{entries[0].parameters[0]}{more}",
            fell_back=any(layer.fallback != "none" for layer in entries),
        )

    return HeatMap(
        id=name,
        title=measure.title,
        columns=tuple("–" if column == NO_LAYER else str(column) for column in grid.columns),
        rows=tuple(
            (title, tuple(cell((row, column)) for column in grid.columns)) for row, title in enumerate(grid.rows)
        ),
    )
