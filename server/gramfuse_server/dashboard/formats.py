"""How pages write sizes, times, durations and messages."""

from datetime import datetime, timedelta
from typing import Final

import yaml
from markupsafe import Markup, escape

from gramfuse_shared.contract.document import Document

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_STEP: Final = 1000
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_SMALLEST_PERCENT: Final = 0.1


def size(count: float) -> str:
    """1234567 → 1.2 MB."""
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < _STEP or unit == _UNITS[-1]:
            break
        value /= _STEP
    return f"{value:.0f} {unit}" if unit == _UNITS[0] else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """75 → 1 min 15 s; 86400 → 24 h: days from two on, and no zero behind a larger unit."""
    whole = max(0, round(seconds))
    for length, unit, finer, rest in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s")):
        if whole >= (2 * length if unit == "d" else length):
            left = whole % length // finer
            return f"{whole // length} {unit}" + (f" {left} {rest}" if left else "")
    return f"{whole} s"


def since(at: datetime, now: datetime) -> str:
    """How long ago, in one unit; `moment` has it exactly."""
    seconds = max(0.0, (now - at) / timedelta(seconds=1))
    for length, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds)} s ago" if seconds >= 1 else "now"


def until(at: datetime, now: datetime) -> str:
    """How long something still takes, rounded to one unit, of which it takes at least two; `since` once it is over."""
    seconds = (at - now) / timedelta(seconds=1)
    if seconds <= 0:
        return since(at, now)
    for length, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= 2 * length:
            return f"in {round(seconds / length)} {unit}"
    return f"in {round(seconds)} s"


def share(part: float, whole: float) -> str:
    """0.0005 of 1 → < 0.1 %."""
    if not part or not whole:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= _SMALLEST_PERCENT else f"< {_SMALLEST_PERCENT} %"


def moment(at: datetime) -> str:
    """A time for people, in UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def as_written(document: Document, **always: object) -> str:
    """A recipe or a policy as people write it, in YAML; what is as by default is left out, but for `always`."""
    written = document.model_dump(mode="json", exclude_defaults=True) | always
    return str(yaml.safe_dump(written, sort_keys=False, allow_unicode=True)).rstrip() if written else ""


def coded(message: str) -> Markup:
    """A message as HTML, escaped, with what stands in `backticks` as code."""
    parts = str(message).split("`")
    last = len(parts) - 1
    return Markup().join(
        Markup("<code>{}</code>").format(part)
        if place % 2 and place < last
        else escape(f"`{part}" if place % 2 else part)
        for place, part in enumerate(parts)
    )
