"""What a document says of differential privacy: the budget of a policy, and under which statistics were noised.

Nobody but who added it can tell whether noise was added: both sides check what is said, and neither can check more.
"""

from typing import Annotated, Final

from pydantic import Field

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.identifiers import RELEASE_PATTERN, Digest

COVERS: Final = "It covers the Grams, not the weights"
"""Stands wherever an ε is shown: the fine-tuned weights have seen the texts too, and no noise is on them."""

MOST_EPSILON: Final = 64.0
"""Above, the noise is for show."""


class PrivacyBudget(Document):
    """(ε, δ) of differential privacy; an example is one text, and neighbouring data differ in one example of n."""

    epsilon: Annotated[float, Field(gt=0, le=MOST_EPSILON)]
    delta: Annotated[float, Field(ge=1e-12, le=0.01)]  # below, doubles no longer tell it from rounding

    def __str__(self) -> str:
        return f"ε = {self.epsilon:g}, δ = {self.delta:g}"

    def why_refused(self, noised: "Noised | None", scales: str | None) -> str | None:
        """Say why statistics do not satisfy a policy of this budget; None where they do, by what is said of them.

        Args:
            noised: under what they were noised, by their own word.
            scales: digest of the project's scales file.
        """
        if noised is None:
            return f"the policy wants noise on them ({self}; differential_privacy): measure with `gramfuse dp collect`"
        if noised.epsilon > self.epsilon or noised.delta > self.delta:
            return f"they were noised for {noised.budget}, the policy wants {self} (differential_privacy)"
        if noised.scales != scales:
            return "they were noised by other scales than the project's (scales): measure with the project's own"
        return None


class Noised(PrivacyBudget):
    """How statistics were noised: by the Gaussian mechanism, on the mean over `examples` texts, each clipped.

    `release` is a random number under which the organization's ledger holds the drawing of the noise.
    """

    examples: Annotated[int, Field(ge=1, le=limits.MAX_ROWS)]
    scales: Digest
    release: Annotated[str, Field(pattern=RELEASE_PATTERN)]

    @property
    def budget(self) -> PrivacyBudget:
        """ε and δ alone."""
        return PrivacyBudget(epsilon=self.epsilon, delta=self.delta)
