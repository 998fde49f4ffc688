"""Means and standard errors over seeds, and the differences that are claimed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.paper.rows import Rows

Results = dict[str, dict[str, dict[str, Any]]]
"""By setting, row and column: `mean`, `se` and `by_seed` of F1 in percent, and the same as `average_precision`."""

AP: Final = "average_precision"
STANDARD_ERRORS: Final = 2.0  # a difference is claimed beyond these


def summarize(by_seed: Mapping[int, Rows]) -> dict[str, dict[str, Any]]:
    """Sum up a setting's tables of several seeds."""
    first, *_ = tables = [by_seed[seed] for seed in sorted(by_seed)]
    return {
        row: {
            column: {
                **moments([table[row][column]["f1"] for table in tables]),
                AP: moments([table[row][column][AP] for table in tables]),
            }
            for column in columns
        }
        for row, columns in first.items()
        if all(row in table for table in tables)  # a greedy search may stop earlier with one seed
    }


def moments(values: Sequence[float]) -> dict[str, Any]:
    """Mean, and standard error of the mean: s/√n with s² over n − 1; None of a single value."""
    mean = sum(values) / len(values)
    error = None
    if len(values) > 1:
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return {
        "mean": round(mean, 2),
        "se": None if error is None else round(error, 2),
        "by_seed": [round(value, 2) for value in values],
    }


def difference(rows: Mapping[str, Mapping[str, Any]], upper: str, lower: str, column: str) -> dict[str, Any]:
    """The difference of two rows, paired by seed, since both rows come from the same models of a seed."""
    pairs = zip(rows[upper][column]["by_seed"], rows[lower][column]["by_seed"], strict=True)
    return moments([one - other for one, other in pairs])


def is_claimed(gap: Mapping[str, Any]) -> bool:
    """Tell whether a difference lies beyond two of its standard errors."""
    return gap["se"] is not None and abs(gap["mean"]) > STANDARD_ERRORS * gap["se"]
