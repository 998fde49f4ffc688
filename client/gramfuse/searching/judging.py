"""How good merges are by everybody's evaluations: one number each. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from gramfuse_shared.contract.metrics import LOWER_IS_BETTER, MetricName
from gramfuse_shared.contract.requests import RequestInfo
from gramfuse_shared.errors import ConfigurationError

Averaging = Literal["organizations", "examples"]
"""`organizations`: the mean of their values, each counting alike. `examples`: weighted by their held-out examples."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The mean of a model's metric, and each organization's own value."""

    value: float
    by_organization: Mapping[str, float]


def judge(
    request: RequestInfo, judges: Collection[str], metric: MetricName, averaging: Averaging
) -> dict[str, Judgement]:
    """Judge the models of a request that all judges have answered, by their ids.

    Raises:
        ConfigurationError: a judge's evaluation has no such metric.
    """
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for place in request.asked:
        for score in place.scores:
            if score.model is None or place.organization not in judges:
                continue
            if metric not in score.metrics:
                has = ", ".join(sorted(score.metrics))
                msg = f"{place.organization}'s evaluation of {score.model} has no {metric}, but {has}; choose of these"
                raise ConfigurationError(msg)
            found.setdefault(score.model, {})[place.organization] = (score.metrics[metric], score.examples)
    return {model: _judgement(values, averaging) for model, values in found.items() if values.keys() == set(judges)}


def is_answered_by(request: RequestInfo, judges: Collection[str]) -> bool:
    """Tell whether all judges have scored the request's models: means over others could not be compared."""
    answered = {place.organization for place in request.asked if place.state == "accepted" and place.scores}
    return set(judges) <= answered


def goodness(judgement: Judgement, metric: MetricName) -> float:
    """Return a number of which more is better."""
    return -judgement.value if metric in LOWER_IS_BETTER else judgement.value


def _judgement(values: Mapping[str, tuple[float, int]], averaging: Averaging) -> Judgement:
    weights = {name: examples if averaging == "examples" else 1 for name, (_, examples) in values.items()}
    mean = sum(weights[name] * value for name, (value, _) in values.items()) / sum(weights.values())
    by_organization = MappingProxyType({name: value for name, (value, _) in sorted(values.items())})
    return Judgement(mean, by_organization)
