"""Score histograms of a model's classes: what an organization says of its held-out texts to have biases shifted.

Counts only, over bins that are the same for everybody: of each class, how often its score fell where among texts (or
words) that bear the label, and among those that do not. The *score* is what a shift of the class's bias moves against
zero: the logit itself where labels are predicted each for itself, else the *margin*, the logit less the largest other.
"""

import math
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document

BINS: Final = 128
LARGEST_SCORE: Final = 16.0
"""Scores beyond ± this fall into the outermost bins: a probability there differs from 0 or 1 by less than 2e-7."""


def bin_edge(number: int) -> float:
    """Return the lower edge of a bin: sinh(2·asinh(16)·number/128 − asinh(16)).

    Bins are narrow where most decisions fall: 0.05 wide around zero, and a nineteenth of the score far from it. The
    middle edge is zero, exactly.
    """
    most = math.asinh(LARGEST_SCORE)
    return math.sinh(most * (2 * number / BINS - 1))


LABELLED_SUM: Final = "labelled"
OTHERS_SUM: Final = "others"
HOLDERS_SUM: Final = "holders"
"""Tensors of a secure sum of histograms: counts by label and bin, and of each label how many members counted it."""

Count = Annotated[int, Field(ge=0, le=limits.MAX_ROWS)]
Counts = Annotated[tuple[Count, ...], Field(min_length=BINS, max_length=BINS)]
ScoreKind = Literal["logit", "margin"]


class ClassHistogram(Document):
    """The scores of one class, counted by bin: of what bears its label, and of what does not.

    Bin k holds the scores s with edge k < s ≤ edge k+1.
    """

    label: Annotated[int, Field(ge=0, lt=limits.MAX_CALIBRATED_LABELS)]
    labelled: Counts
    others: Counts


class CalibrationHistograms(Document):
    """One organization's histograms, or the sum of several. Classes with too few texts are not there."""

    format: Literal["gramfuse/calibration/1"] = "gramfuse/calibration/1"
    score: ScoreKind
    labels: Annotated[int, Field(ge=1, le=limits.MAX_CALIBRATED_LABELS)] = Field(
        description="how many labels the model has; those without a histogram are not shifted"
    )
    classes: Annotated[tuple[ClassHistogram, ...], Field(max_length=limits.MAX_CALIBRATED_LABELS)]

    @model_validator(mode="after")
    def _classes_are_of_the_model_and_in_order(self) -> Self:
        found = [histogram.label for histogram in self.classes]
        if found != sorted(set(found)) or any(label >= self.labels for label in found):
            msg = "classes come once each, in order of their labels, which are the model's"
            raise ValueError(msg)
        return self
