"""How often and how patiently a call is tried again."""

from dataclasses import dataclass
from typing import Final

from gramfuse_shared.errors import GramfuseError


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often and how patiently a call is tried again: full jitter below a doubling bound, in seconds."""

    attempts: int = 5
    first_delay: float = 0.25
    longest_delay: float = 8.0

    def delay(self, failures: int, *, jitter: float) -> float:
        """Return the pause after so many failures; `jitter` lies between 0 and 1."""
        return jitter * min(self.longest_delay, self.first_delay * 2.0 ** (failures - 1))


PATIENT: Final = RetryRule(attempts=10)
"""For transfers: about half a minute, in which a server restarts."""


def is_retryable(error: GramfuseError) -> bool:
    """Tell whether the raiser, or the problem document that it came from, says that trying again can help."""
    return bool(error.facts.get("retryable", error.retryable))
