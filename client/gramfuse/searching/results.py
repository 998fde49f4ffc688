"""What a search found: every merge that was tried with everybody's scores, and the best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gramfuse.searching.judging import Averaging
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.metrics import MetricName
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import RequestInfo


@dataclass(frozen=True, slots=True)
class Trial:
    """A merge that was tried, and how everybody found it.

    Attributes:
        job: the id of its job and model.
        words: what is particular about it.
        round: in which batch of the strategy it was first proposed, from 1; 0: only merged so that everybody judges.
        recipe: its recipe.
        value: the mean of the metric.
        by_organization: each organization's own value.
    """

    job: str
    words: str
    round: int
    recipe: Recipe
    value: float
    by_organization: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "job": self.job,
            "words": self.words,
            "round": self.round,
            "recipe": self.recipe.model_dump(mode="json"),
            "value": self.value,
            "by_organization": dict(self.by_organization),
        }


@dataclass(frozen=True, slots=True)
class SearchResult:
    """All merges that a search tried, in the order in which it did, and the best of them.

    `curve` holds the best of each round: of a greedy search its curve, of which the last round may not have helped.
    """

    metric: MetricName
    averaging: Averaging
    best: Trial
    trials: tuple[Trial, ...]
    curve: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "metric": self.metric,
            "averaging": self.averaging,
            "best": self.best.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
            "curve": [trial.job for trial in self.curve],
        }


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """How far a search is: its round, how many of the round's merges are judged, and what is waited for."""

    round: int
    judged: int
    proposed: int
    request: RequestInfo | None = None
    job: Job | None = None
