"""What a model is scored by: the tasks and metrics that both parties know, and nothing else."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, FiniteFloat

Task = Literal[
    "token-classification", "sequence-classification", "multi-label-classification", "causal-lm", "seq2seq-lm"
]
"""What a model does with a text, by the class that its config names."""

MetricName = Literal["f1", "precision", "recall", "accuracy", "average_precision", "loss", "perplexity"]
"""`f1`, `precision` and `recall` are the task's main ones: of entities (all together, kind and both ends right) where
tags name entities, else the mean over the classes that occur among the labels; so is `average_precision`.
`accuracy`: share of texts, words or written tokens that are right; of texts with several labels, all of them.
`loss`: nats per text, word, label (where a text has several) or written token; `perplexity` is its exponential."""

LOWER_IS_BETTER: Final[frozenset[MetricName]] = frozenset({"loss", "perplexity"})

DECIMALS: Final = 4
"""Of every metric that leaves, but perplexity: so many of its significant digits, which tell no more than its loss."""

_LEAST: Final[Mapping[MetricName, float]] = {"perplexity": 1.0}
_UNBOUNDED: Final[frozenset[MetricName]] = frozenset({"loss", "perplexity"})


def require_possible(metrics: Mapping[MetricName, float]) -> Mapping[MetricName, float]:
    """Return metrics whose values can occur; raises ValueError."""
    for name, value in metrics.items():
        least, most = _LEAST.get(name, 0.0), float("inf") if name in _UNBOUNDED else 1.0
        if not least <= value <= most:
            msg = f"{name} must be at least {least:g}" + ("" if name in _UNBOUNDED else f" and at most {most:g}")
            raise ValueError(msg)
    return metrics


def in_few_digits(metrics: Mapping[MetricName, float]) -> dict[MetricName, float]:
    """Return metrics as they may leave: who knows the texts has in each digit of a loss a piece of an equation."""
    return {
        name: float(f"{value:.{DECIMALS}g}") if name == "perplexity" else round(value, DECIMALS)
        for name, value in metrics.items()
    }


Metrics = Annotated[Mapping[MetricName, FiniteFloat], Field(min_length=1), AfterValidator(require_possible)]
"""Metric to value; only finite values that the metric can take."""
