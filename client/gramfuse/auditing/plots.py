"""Draws a report's numbers as SVG for a page: its colours are the page's own, so that they follow light and dark."""

import io
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gramfuse.auditing.report import AuditReport, TapReport
from gramfuse.auditing.thresholds import Above, Below

MOST_NAMED: Final = 24
"""Attacks that are drawn, each on a line of its own; the table has all."""

_COLOURS: Final = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--leaves)",
    "#050505": "var(--stays)",
    "#060606": "var(--warn)",
    "#070707": "var(--refuse)",
    "#080808": "var(--card)",
}
"""Stand-ins that the library draws with, and what a page says in their place."""

_INK, _SOFT, _LINE, _LEAVES, _STAYS, _WARN, _REFUSE, _CARD = _COLOURS
_STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "gramfuse",  # else identifiers are random
    "svg.fonttype": "none",  # text is text: it takes the page's letters, and can be selected
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a dollar
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _LINE,
}
_WIDTH: Final = 4.1  # inches: on a phone the letters keep about their size
_CHANCE: Final = 0.5


class Plot(NamedTuple):
    """A drawing, what it shows, and the same in words for who cannot see it."""

    title: str
    told: str
    svg: str


class _Attack(NamedTuple):
    name: str
    auc: float
    leaves: bool


def draw_all(report: AuditReport) -> list[Plot]:
    """Draw what the report has numbers for."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type] # its keys are among the known ones
        made = [_attacks(report), _sums(report), _rows(report), _ranks(report)]
    return [plot for plot in made if plot is not None]


def _attacks(report: AuditReport) -> Plot | None:
    attacks = report.attacks
    found = [_Attack(f"tokens · {one.tap}", one.auc, one.leaves) for one in attacks.tokens if one.auc is not None]
    found += [_Attack(f"membership · {one.tap}", one.auc, one.leaves) for one in attacks.membership]
    found += [_Attack(f"vocabulary · {v.tensor}", v.auc, v.leaves) for v in attacks.vocabulary if v.auc is not None]
    if not found:
        return None
    shown = found[:MOST_NAMED]
    figure, axis = _figure(0.42 * len(shown) + 0.6)
    for place, one in enumerate(shown):
        axis.plot([_CHANCE, one.auc], [place, place], color=_LINE, linewidth=3, solid_capstyle="round", zorder=1)
        _mark(axis, one.auc, place, leaves=one.leaves)
        axis.text(0.4, place - 0.36, _shortened(one.name), fontsize=8, color=_SOFT, va="center")
    axis.set_xlim(0.4, 1.02)
    axis.set_ylim(len(shown) - 0.5, -0.75)
    axis.set_yticks([])
    for value, colour, dashes in (*_told(report.thresholds.membership_auc), (_CHANCE, _SOFT, "solid")):
        # beside each mark alone, so that no line runs through the letters above it
        below, above = zip(*((place - 0.16, place + 0.46) for place in range(len(shown))), strict=True)
        axis.vlines([value] * len(shown), below, above, colors=colour, linewidth=1.1, linestyles=dashes, zorder=0)
    axis.set_xlabel("AUC; ½ is chance, 1 tells all")
    told = "; ".join(f"{one.name}: {one.auc:.2f}, {'leaves' if one.leaves else 'stays'}" for one in shown)
    return _plot(figure, "attacks", "What the attacks found", told)


def _sums(report: AuditReport) -> Plot | None:
    told_apart = [one for one in report.attacks.membership if one.sums]
    if not told_apart:
        return None
    figure, axis = _figure(2.5)
    for one in told_apart:
        members = [1, *one.sums]
        places = range(len(members))
        colour = _LEAVES if one.leaves else _STAYS
        axis.plot(places, [one.auc, *one.sums.values()], color=colour, marker="o", markersize=4, linewidth=1.4)
    axis.set_xticks(range(len(members)), [str(number) for number in members])
    axis.set_ylim(min(0.45, *(min(one.sums.values()) for one in told_apart)), 1.02)
    axis.axhline(_CHANCE, color=_SOFT, linewidth=0.8)
    _limits(axis, report.thresholds.membership_auc)
    axis.grid(axis="y", linewidth=0.5)
    axis.set_xlabel("members that are summed (1: you alone)")
    axis.set_ylabel("AUC of membership")
    told = "; ".join(
        f"{one.tap}: alone {one.auc:.2f}, " + ", ".join(f"of {n} {auc:.2f}" for n, auc in one.sums.items())
        for one in told_apart
    )
    return _plot(figure, "sums", "Membership in a cohort's sum, estimated", told)


def _rows(report: AuditReport) -> Plot | None:
    if not report.taps:
        return None
    figure, axis = _figure(2.3)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.minorticks_off()
    _by_tap(axis, report.taps, [max(tap.rows_per_dimension, 1e-3) for tap in report.taps])
    _limits(axis, report.thresholds.rows_per_dimension)
    axis.set_ylabel("distinct rows per dimension")
    told = "; ".join(f"{tap.tap}: {tap.rows_per_dimension:.3g}" for tap in report.taps)
    return _plot(figure, "rows", "Rows per dimension, tap by tap", told)


def _ranks(report: AuditReport) -> Plot | None:
    taps = [tap for tap in report.taps if tap.effective_rank is not None]
    if not taps:
        return None
    figure, axis = _figure(2.3)
    ranks = [tap.effective_rank or 0.0 for tap in taps]
    _by_tap(axis, taps, ranks)
    axis.set_ylim(0, max(ranks) * 1.12 + 1)
    axis.set_ylabel("effective rank")
    told = "; ".join(f"{tap.tap}: {rank:.0f} of {tap.width}" for tap, rank in zip(taps, ranks, strict=True))
    return _plot(figure, "ranks", "Effective rank, tap by tap", told)


def _by_tap(axis: Axes, taps: Sequence[TapReport], values: Sequence[float]) -> None:
    for place, (tap, value) in enumerate(zip(taps, values, strict=True)):
        _mark(axis, place, value, leaves=tap.leaves)
    axis.grid(axis="y", linewidth=0.5)
    axis.set_xlim(-0.8, len(taps) - 0.2)
    axis.set_xlabel("taps, in the model's order")


def _mark(axis: Axes, x: float, y: float, *, leaves: bool) -> None:
    """A filled mark leaves, a hollow one stays: not told by colour alone."""
    colour = _LEAVES if leaves else _STAYS
    face = colour if leaves else _CARD
    axis.plot([x], [y], "o", markersize=6, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.4, zorder=3)


def _limits(axis: Axes, limits: Above | Below) -> None:
    for value, colour, dashes in _told(limits):
        axis.axhline(value, color=colour, linewidth=1.1, linestyle=dashes, zorder=0)


def _told(limits: Above | Below) -> list[tuple[float, str, Any]]:
    """Return where a line is drawn, its colour, and how it is dashed."""
    found = ((limits.warn, _WARN, (0, (4, 3))), (limits.refuse, _REFUSE, "solid"))
    return [(value, colour, dashes) for value, colour, dashes in found if value is not None]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    axis.tick_params(length=0)
    return figure, axis


def _plot(figure: Figure, prefix: str, title: str, told: str) -> Plot:
    target = io.BytesIO()
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    svg = target.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # several drawings stand in one page, where a name may be given once
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r'<svg \1aria-hidden="true"', svg, count=1, flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return Plot(title, told, svg)


def _shortened(name: str, most: int = 56) -> str:
    return name if len(name) <= most else f"{name[:14]}…{name[-(most - 15) :]}"
