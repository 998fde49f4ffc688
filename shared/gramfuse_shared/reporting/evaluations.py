"""The scores of an evaluation as tables, one of each metric: everybody's own model beside the merged ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from gramfuse_shared.contract.metrics import DECIMALS, MetricName
from gramfuse_shared.contract.requests import RequestInfo

OWN_MODEL: Final = "own model"
METRICS: Final[tuple[MetricName, ...]] = get_args(MetricName)


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A metric of every model (columns) by every organization (rows), and the means; None where it is not known.

    A column has a mean once everybody has answered.
    """

    metric: MetricName
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    means: tuple[float | None, ...]

    @property
    def title(self) -> str:
        """The metric as people call it."""
        return self.metric.replace("_", " ")


def score_tables(request: RequestInfo) -> list[ScoreTable]:
    """Make a table of each metric that anybody has told, the main ones first."""
    tables = (_score_table(request, metric) for metric in METRICS)
    return [table for table in tables if any(value is not None for _, values in table.rows for value in values)]


def score(metric: MetricName, value: float | None) -> str:
    """Write a metric with the decimals that leave; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.{DECIMALS}g}" if metric == "perplexity" else f"{value:.{DECIMALS}f}"


def _score_table(request: RequestInfo, metric: MetricName) -> ScoreTable:
    models: tuple[str | None, ...] = (None, *request.models)
    rows = []
    for place in request.asked:
        told = {found.model: found.metrics.get(metric) for found in place.scores}
        rows.append((place.organization, tuple(told.get(model) for model in models)))
    means = tuple(_mean([values[number] for _, values in rows]) for number in range(len(models)))
    return ScoreTable(metric, (OWN_MODEL, *request.models), tuple(rows), means)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
