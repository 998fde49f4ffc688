"""How contributions stand, in words: the same on the command line and on pages."""

from collections.abc import Iterable
from typing import Final

from gramfuse_shared.contract.http_api import Contribution

_STATES: Final = {  # the state that says most comes first
    "accepted": "contribution accepted",
    "sealed": "contribution being checked",
    "open": "contribution being uploaded",
    "rejected": "contribution rejected",
    "withdrawn": "contribution withdrawn",
    "expired": "the upload of its contribution expired",
}


def why_passed_over(contribution: Contribution) -> str | None:
    """Say why merges pass over an accepted contribution; None of one that counts, or was not accepted."""
    match contribution.passed_over:
        case "policy":
            return f"made under version {contribution.policy.version} of the policy: push again"
        case "newer":
            return "a newer one took its place"
        case None:
            return None


def spoken_of(contributions: Iterable[Contribution], policy_version: int) -> Contribution | None:
    """Choose which of an organization's contributions says how far it is; None where it has to begin.

    The one that counts; else of those under the current policy the newest in the state that says most; else the one
    that a newer policy put out of play.
    """
    known = [found for found in contributions if found.passed_over != "newer"]
    current = [found for found in known if found.policy.version == policy_version]
    order = list(_STATES)
    best = min(current, key=lambda found: (order.index(found.state), -found.created_at.timestamp()), default=None)
    return best or next((found for found in known if found.passed_over == "policy"), None)


def progress_told(contribution: Contribution | None) -> str:
    """Say how far an organization is by the contribution that is spoken of."""
    if contribution is None:
        return "no contribution yet"
    why = why_passed_over(contribution)
    return f"contribution {why}" if why else _STATES[contribution.state]
