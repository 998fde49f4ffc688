"""The layers of a merge in rows of one kind and columns of one number, and the figures that are drawn of them."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

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

NO_LAYER: Final = -1
"""The column of what is in no layer."""

Scale: TypeAlias = Literal["even", "magnitude", "root"]

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
_MOST_CHARACTERS: Final = 44


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of layers: which of several is worst, how it is written, how its colours are spread."""

    title: str
    value_of: Callable[[Layer], float | None]
    worst: Callable[[Sequence[float]], float]
    written: Callable[[float], str]
    scale: Scale


GAINED: Final = Measure(
    "Gained over the average: share of RegMean's objective",
    lambda layer: layer.gained, min, lambda value: f"{value:z.0%}", "even",
)  # fmt: skip
CONDITION: Final = Measure(
    "Condition number of the solved system, at least",
    lambda layer: layer.condition, max, number, "magnitude",
)  # fmt: skip
DISTANCE: Final = Measure(
    "Distance of the farthest contribution, ‖Wᵢ − W‖/‖W‖",
    lambda layer: layer.spread.largest if layer.spread else None, max, lambda value: f"{value:.1%}", "root",
)  # fmt: skip
OWN: Final = Measure(
    "Distance of your organization's contribution",
    lambda layer: layer.own, max, lambda value: f"{value:.1%}", "root",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Range:
    """What lies between the first colour and the last: gains evenly, conditions by their magnitude, distances by their
    root, as one may be huge.
    """

    low: float
    high: float
    scale: Scale

    def share_of(self, value: float) -> float:
        """Return where a value's colour lies, from 0 to 1."""
        if self.scale == "magnitude":
            return math.log(max(value, self.low)) / math.log(self.high)
        if self.scale == "root":
            return math.sqrt(max(value, 0.0) / self.high)
        return (value - self.low) / (self.high - self.low)

    def value_at(self, share: float) -> float:
        """Return the value whose colour lies there."""
        if self.scale == "magnitude":
            return math.exp(share * math.log(self.high))
        if self.scale == "root":
            return share**2 * self.high
        return self.low + share * (self.high - self.low)


def range_of(values: Collection[float], scale: Scale) -> Range:
    """Return a range that holds all values, wide enough for equal ones to have a colour."""
    if scale == "magnitude":
        return Range(1.0, max(10.0, *values), scale)
    return Range(0.0 if scale == "root" else min(0.0, *values), max(0.01, *values), scale)


@dataclass(frozen=True, slots=True)
class LayerGrid:
    """Entries by kind (rows) and layer number (columns); the last column may be `NO_LAYER`."""

    rows: tuple[str, ...]
    columns: tuple[int, ...]
    cells: dict[tuple[int, int], list[Layer]]

    def values(self, measure: Measure) -> dict[tuple[int, int], float]:
        """Return the worst value of each cell."""
        return {
            place: measure.worst([value for layer in layers if (value := measure.value_of(layer)) is not None])
            for place, layers in self.cells.items()
        }


def grid_of(layers: Sequence[Layer], measure: Measure) -> LayerGrid | None:
    """Arrange the entries that have a figure; kinds are told from all of them. None if no entry has it."""
    having = [layer for layer in layers if measure.value_of(layer) is not None]
    return arrange(having, kinds_of(layers)) if having else None


def arrange(layers: Sequence[Layer], kind_of: Mapping[str, str]) -> LayerGrid:
    """Sort entries into rows of one kind: names that differ in numbers only, or that are solved together somewhere."""
    places: dict[str, list[tuple[int, Layer]]] = {}
    for layer in layers:
        found = _NUMBER.search(layer.parameters[0])
        place = NO_LAYER if found is None else int(found[0])
        places.setdefault(kind_of[_pattern(layer.parameters[0])], []).append((place, layer))
    most = sorted(places, key=lambda kind: -len({number for number, _ in places[kind]}))[:MAX_ROWS]
    kinds = [kind for kind in dict.fromkeys(kind_of.values()) if kind in most]
    column_of = _columns({place for kind in kinds for place, _ in places[kind]})
    cells: dict[tuple[int, int], list[Layer]] = {}
    for row, kind in enumerate(kinds):
        for place, layer in places[kind]:
            cells.setdefault((row, column_of[place]), []).append(layer)
    numbers = sorted({column for _, column in cells if column != NO_LAYER})
    outside = [NO_LAYER] if any(column == NO_LAYER for _, column in cells) else []
    return LayerGrid(_titles(kinds, kind_of), (*numbers, *outside), cells)


def _columns(places: set[int]) -> dict[int, int]:
    """Give each layer's number its column: its own, or where there are too many the first of its neighbours."""
    numbers = sorted(places - {NO_LAYER})
    several = math.ceil(len(numbers) / MAX_COLUMNS)
    column_of = {number: numbers[rank - rank % several] for rank, number in enumerate(numbers)}
    return column_of | {NO_LAYER: NO_LAYER}


def kinds_of(layers: Sequence[Layer]) -> dict[str, str]:
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
