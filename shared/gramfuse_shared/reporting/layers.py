"""The layers of a merge as Markdown: quantiles over all, the few that deserve a look, and what went another way."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from gramfuse_shared.contract.diagnostics import Layer, Spread, rounded

WORST: Final = 5
MAX_ROWS: Final = 400
"""Rows of the table of exceptions; diagnostics.json has them all."""

EXPLANATION: Final = (
    "*Condition*: of the system that was solved, scaled to a unit diagonal; a lower bound. *Gained*: the squared error "
    "by which a layer misses what the organizations' own layers make of their own inputs (RegMean's objective, its "
    "eq. 1), less than the average's by this share; of up to 16 rows of the weights, so an estimate; below 0 the "
    "average fits better. *Distance*: ‖Wᵢ − W‖/‖W‖ of a contribution from what came out, of up to 4,096 elements: the "
    "smallest, the median and the largest of the cohort."
)

_LEVELS: Final = (("smallest", 0.0), ("quartile", 0.25), ("median", 0.5), ("quartile", 0.75), ("largest", 1.0))


def describe_layers(layers: Sequence[Layer]) -> list[str]:
    """Write the lines of a section on layers."""
    if not layers:
        return ["Every parameter was merged as the method says."]
    counts = Counter(way_of(layer) for layer in layers)
    told = ", ".join(f"{count} × {way}" for way, count in counts.most_common())
    lines = [f"{len(layers)} entries, weights that are solved together being one: {told}."]
    summary = quantile_rows(layers)
    if summary:
        heads = ["", *(name for name, _ in _LEVELS)]
        lines += ["", EXPLANATION, "", *markdown_table(heads, summary, right=range(1, len(heads)))]
    solved = [layer for layer in layers if layer.condition is not None]
    worst = sorted(solved, key=lambda layer: -(layer.condition or 0.0))[:WORST]
    gaining = [layer for layer in layers if layer.gained is not None]
    least = sorted(gaining, key=lambda layer: layer.gained or 0.0)[:WORST]
    for title, chosen in (("Worst conditioned", worst), ("Gained least", least)):
        if chosen:
            heads = ["parameters", "condition ≥", "gained", "distance", "fallback"]
            rows = [[title_of(layer), *numbers_of(layer), layer.fallback] for layer in chosen]
            lines += ["", f"### {title}", "", *markdown_table(heads, rows, right=(1, 2))]
    return lines + _exceptions(layers)


def quantile_rows(layers: Sequence[Layer]) -> list[list[str]]:
    """Return a row for each figure that any layer has: its name, then smallest to largest over the layers."""
    figures: list[tuple[str, list[float], Callable[[float], str]]] = [
        ("condition, at least", [layer.condition for layer in layers if layer.condition is not None], number),
        ("gained over the average", [layer.gained for layer in layers if layer.gained is not None], share),
        ("distance, the cohort's median", [layer.spread.median for layer in layers if layer.spread], share),
        ("distance, the cohort's largest", [layer.spread.largest for layer in layers if layer.spread], share),
        ("distance, your organization's", [layer.own for layer in layers if layer.own is not None], share),
    ]
    return [
        [f"{name} ({len(values)} entries)", *(written(quantile(values, level)) for _, level in _LEVELS)]
        for name, values, written in figures
        if values
    ]


def quantile(values: Sequence[float], level: float) -> float:
    """Return the value at a level from 0 to 1, interpolated between neighbours in order."""
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def title_of(layer: Layer) -> str:
    """Name an entry by its first parameter, as code."""
    more = f" and {len(layer.parameters) - 1} more" if len(layer.parameters) > 1 else ""
    return f"`{layer.parameters[0]}`{more}"


def way_of(layer: Layer) -> str:
    """Say how an entry was merged: by the method, or by what took its place."""
    return layer.method if layer.fallback == "none" else f"{layer.method} → {layer.fallback}"


def numbers_of(layer: Layer) -> list[str]:
    """Write an entry's condition, gain and spread; nothing for what it has not."""
    return [
        "" if layer.condition is None else number(layer.condition),
        "" if layer.gained is None else share(layer.gained),
        "" if layer.spread is None else spread(layer.spread),
    ]


def note_of(layer: Layer) -> str:
    """Say why an entry is an exception; empty if it is none."""
    notes = [layer.reason] if layer.reason else []
    if layer.estimated:
        notes.append(f"precision estimated of {', '.join(layer.estimated)}")
    return "; ".join(notes)


def number(value: float) -> str:
    """Write a number to three digits: 12.3, 1,230, 1.2e+07."""
    value = rounded(value)
    most = 1e6
    return f"{value:,.0f}" if 1000 <= abs(value) < most else f"{value:.3g}"  # noqa: PLR2004 - where commas help


def share(value: float) -> str:
    """Write a share in percent."""
    return f"{rounded(value):z.1%}"  # z: no zero is negative


def spread(value: Spread) -> str:
    """Write the smallest, median and largest distance."""
    return " · ".join(share(part) for part in (value.smallest, value.median, value.largest))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Write a Markdown table; columns whose number is in `right` are aligned right."""
    rule = "".join("---:|" if number in right else "---|" for number in range(len(columns)))
    return [f"| {' | '.join(columns)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


def _exceptions(layers: Sequence[Layer]) -> list[str]:
    found = [layer for layer in layers if note_of(layer)]
    if not found:
        return []
    columns = ["parameters", "merged by", "rows (fewest)", "dead features", "note"]
    lines = [
        "",
        "### Merged otherwise",
        "",
        *markdown_table(columns, [_exception(layer) for layer in found[:MAX_ROWS]]),
    ]
    if len(found) > MAX_ROWS:
        lines.append(f"\n…and {len(found) - MAX_ROWS} more, see `diagnostics.json`.")
    return lines


def _exception(layer: Layer) -> list[str]:
    rows = "" if layer.rows is None else f"{layer.rows:,} ({layer.fewest_rows:,})"
    dead = "" if layer.dead_features is None else str(layer.dead_features)
    return [title_of(layer), way_of(layer), rows, dead, note_of(layer)]
