"""How many texts it takes until a tap has the rows that a policy asks for."""

import math
from collections.abc import Iterable

from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.policy import Policy


def texts_needed(taps: Iterable[TapInfo], texts: int, policy: Policy) -> dict[str, int]:
    """Return, by the names of taps with too few distinct rows, about how many texts like these would bring enough.

    Rows grow as the texts do: a tap that reads a row a text, as a pooler, needs as many texts as rows.
    """
    return {
        tap.name: math.ceil(policy.minimum_rows(tap.width) * texts / tap.distinct_rows)
        for tap in taps
        if 0 < tap.distinct_rows < policy.minimum_rows(tap.width)
    }
