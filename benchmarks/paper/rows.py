"""Rows of one seed: scores by column and measure, their mean, and the best of them."""

from collections.abc import Mapping, Sequence

Scores = Mapping[str, float]
"""In percent: `f1`, `average_precision`."""
Row = dict[str, dict[str, float]]
"""Scores by column."""
Rows = dict[str, Row]
"""A setting's table of one seed."""


def mean_scores(scores: Sequence[Scores]) -> dict[str, float]:
    """The mean of each measure."""
    return {measure: sum(one[measure] for one in scores) / len(scores) for measure in scores[0]}


def mean_row(rows: Sequence[Row]) -> Row:
    """The mean of each column's measures."""
    return {column: mean_scores([row[column] for row in rows]) for column in rows[0]}


def best_row(rows: Sequence[Row]) -> Row:
    """Each measure's best in each column, chosen on the test sets themselves: in favour of the single models."""
    return {
        column: {measure: max(row[column][measure] for row in rows) for measure in rows[0][column]}
        for column in rows[0]
    }
