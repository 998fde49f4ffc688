"""How far the checks of a contribution are, told from its state; what each checks is `intake`'s and the worker's."""

from dataclasses import dataclass
from typing import Literal

from gramfuse_shared.contract.http_api import Contribution

CheckState = Literal["passed", "failed", "awaited", "none"]


@dataclass(frozen=True, slots=True)
class Check:
    """A stage of the checks: `awaited` until it is its turn, `none` where there is nothing to check."""

    name: str
    state: CheckState
    meaning: str


def checks_of(contribution: Contribution) -> tuple[Check, ...]:
    """Tell the stages apart: the manifest's, the parts', the headers' at the seal, the bytes' by a worker."""
    parts, headers, numbers = _states(contribution)
    return (
        Check(
            "Manifest", "passed", "names, shapes, dtypes and taps fit the base model and the policy, and it is signed"
        ),
        Check("Parts", parts, "each part has the length and the SHA-256 that were announced, and all arrived"),
        Check("Headers", headers, "at the seal: each file's own header says what the manifest says, and no free text"),
        Check(
            "Numbers",
            numbers,
            "by a worker: each whole file's SHA-256; every value finite; Gram matrices symmetric and positive definite",
        ),
    )


def _states(contribution: Contribution) -> tuple[CheckState, CheckState, CheckState]:
    """Return how parts, headers and numbers stand."""
    sealed, decided = contribution.sealed_at is not None, contribution.decided_at is not None
    if contribution.bytes == 0:  # what is summed in secret is a manifest alone
        return "none", "none", "none"
    match contribution.state:
        case "open":
            return "awaited", "awaited", "awaited"
        case "expired":
            return "failed", "none", "none"
        case "sealed":
            return "passed", "passed", "awaited"
        case "accepted":
            return "passed", "passed", "passed"
        case "rejected":
            return ("passed", "passed", "failed") if sealed else ("passed", "failed", "none")
        case "withdrawn":  # at whatever stage
            return ("passed", "passed", "passed" if decided else "none") if sealed else ("none", "none", "none")
