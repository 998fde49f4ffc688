"""Many names of tensors and taps in few words."""

import re
from collections.abc import Sequence
from typing import Final

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)")


def name_pattern(name: str) -> str:
    """Replace the layer numbers of a name: `encoder.layer.*.output.weight`."""
    return _NUMBER.sub("*", name)


def folded(names: Sequence[str]) -> str:
    """Write names that have one pattern: the name itself, or `encoder.layer.*.output.weight × 6`."""
    return names[0] if len(names) == 1 else f"{name_pattern(names[0])} × {len(names)}"


def name_patterns(names: Sequence[str]) -> list[str]:
    """Fold names that differ only in layer numbers."""
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(name_pattern(name), []).append(name)
    return [folded(alike) for alike in members.values()]


def number_ranges(numbers: Sequence[int]) -> list[str]:
    """Write ascending numbers with ranges: 0, 3-7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def first_names(names: Sequence[str], most: int) -> str:
    """Write the first names, and that there are more where there are (a, b, c, …)."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def few(names: Sequence[str], what: str) -> str:
    """Write a number of things with the first names, enough to recognize them: 5 taps (a, b, c, …)."""
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({first_names(names, 3)})"


def natural_key(name: str) -> tuple[tuple[int, str | int], ...]:
    """Order names as a person would: `layer.2` before `layer.10`."""
    return tuple((1, int(part)) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name))
