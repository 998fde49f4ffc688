"""What a policy asks of a merged model's evaluations before the model is released."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, FiniteFloat, model_validator

from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.metrics import LOWER_IS_BETTER, MetricName, Metrics, require_possible
from gramfuse_shared.errors import PolicyViolationError


class ReleaseGate(Document):
    """Bounds on one metric of the organizations of a model's cohort; at least one of the two.

    Attributes:
        metric: which of the metrics that `evaluate` answers hold.
        mean: the mean over these organizations, each counting alike, is at least this; of loss and perplexity, at most.
        behind_own: at none of them the model is behind the organization's own by more than this.
    """

    metric: MetricName
    mean: FiniteFloat | None = Field(default=None, exclude_if=lambda value: value is None)
    behind_own: Annotated[FiniteFloat, Field(ge=0)] | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _bounds_something_possible(self) -> Self:
        if self.mean is None and self.behind_own is None:
            msg = "a release gate says a mean, or behind_own, or both"
            raise ValueError(msg)
        if self.mean is not None:
            require_possible({self.metric: self.mean})
        return self

    def __str__(self) -> str:
        bounds = []
        if self.mean is not None:
            most = "at most" if self.metric in LOWER_IS_BETTER else "at least"
            bounds.append(f"the mean of its {self.in_words} over its cohort is {most} {self.mean:g}")
        if self.behind_own is not None:
            bounds.append(
                f"at no organization of its cohort its {self.in_words} is behind the organization's own model's by "
                f"more than {self.behind_own:g}"
            )
        return ", and ".join(bounds)

    def require_readable(self, scored: Mapping[str | None, Metrics]) -> None:
        """Require of an evaluation what could not be added later, since an answer is given once.

        Args:
            scored: the metrics of each model that it scores; None is the organization's own.

        Raises:
            PolicyViolationError: the metric is missing, or the own model that others are compared with.
        """
        if self.behind_own is not None and None not in scored:
            msg = "the policy compares a model with your own (release); name your own (model) in the configuration"
            raise PolicyViolationError(msg)
        for model, metrics in scored.items():
            if (model is not None or self.behind_own is not None) and self.metric not in metrics:
                which = "your own model" if model is None else model
                msg = f"the policy goes by {self.in_words} (release), which the scores of {which} do not have"
                raise PolicyViolationError(msg, metric=self.metric)

    @property
    def in_words(self) -> str:
        """The metric's name for people."""
        return self.metric.replace("_", " ")
