"""The loss of one example of a batch: with labels drawn from the model's own prediction, or with those that were given.

Neither other examples nor padding change it, so that no batch changes what is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from gramfuse.measuring.sampled_loss import sampled_loss
from gramfuse_shared.digest import seed_of

IGNORED: Final = -100
"""In place of a label: here nothing was to be predicted. The value is torch's own."""


class ExampleLoss(Protocol):
    """Returns −log p(y|x) of an example, a scalar, y being the labels of one kind or the other."""

    @property
    def identity(self) -> Any:  # noqa: ANN401 - any JSON value
        """What the labels of all texts are known again by, as a JSON value."""

    def has_labels(self, number: int) -> bool:
        """Tell whether a text has any label; without one it is no example."""

    def __call__(
        self,
        number: int,
        predicted: Any,  # noqa: ANN401 - a transformers output
        masks: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Take the example's place among the texts, what was predicted for it alone, and its masks, all [1, …]."""


@dataclass(frozen=True, slots=True)
class SampledLabels:
    """The labels are drawn from p, by a generator of each example's own.

    `problem` is the `problem_type` of the model's config.
    """

    seed: int
    device: torch.device
    problem: str | None = None

    @property
    def identity(self) -> Any:  # noqa: ANN401 - any JSON value
        """The kind, and what the drawing begins with."""
        return ["sampled", self.seed]

    def has_labels(self, number: int) -> bool:  # noqa: ARG002 - wherever the model predicts, a label is drawn
        """Return true."""
        return True

    def __call__(
        self,
        number: int,
        predicted: Any,  # noqa: ANN401 - a transformers output
        masks: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return −log p(ŷ|x), ŷ drawn from p. Raises as `sampled_loss` does."""
        drawn = torch.Generator(self.device).manual_seed(seed_of(f"{self.seed} {number}"))
        return sampled_loss(predicted, masks, drawn, problem=self.problem)


@dataclass(frozen=True, slots=True)
class GivenLabels:
    """The labels came with the texts.

    Attributes:
        targets: of each text the label ids of its predictions, int64 [predictions], `IGNORED` where there is none; or,
            of a model that gives a text several labels, whether it has each, bool [labels].
    """

    targets: Sequence[torch.Tensor]

    @property
    def identity(self) -> Any:  # noqa: ANN401 - any JSON value
        """The kind, and every label."""
        return ["given", [target.tolist() for target in self.targets]]

    def has_labels(self, number: int) -> bool:
        """Tell whether anything of a text is labelled."""
        target = self.targets[number]
        return target.dtype == torch.bool or bool((target != IGNORED).any())

    def __call__(
        self,
        number: int,
        predicted: Any,  # noqa: ANN401 - a transformers output
        masks: Mapping[str, torch.Tensor],  # noqa: ARG002 - a target is as long as its text, so padding has none
    ) -> torch.Tensor:
        """Return −log p(y|x), summed over the example's predictions."""
        logits = predicted.logits.float()
        rows = logits.reshape(-1, logits.shape[-1])  # [T, C], or [1, C]
        target = self.targets[number].to(rows.device)
        if target.dtype == torch.bool:
            return torch.nn.functional.binary_cross_entropy_with_logits(rows[0], target.float(), reduction="sum")
        said = rows[: len(target)]
        return torch.nn.functional.cross_entropy(said, target, ignore_index=IGNORED, reduction="sum")
