"""Why statistics of a tap stay at home: in one word for the wire, in many for a person."""

import math
from collections.abc import Collection
from typing import Annotated, Final, Literal

from pydantic import Field

from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.policy import Policy

Obstacle = Literal["embeddings", "few_rows", "weights"]
"""Embeddings feed the tap, or may; it has fewer rows than the policy wants; none of the weights that read it leaves."""

Withheld = Annotated[tuple[Obstacle, ...], Field(max_length=3)]

IN_SHORT: Final[dict[Obstacle, str]] = {
    "embeddings": "what embeddings feed stays at home",
    "few_rows": "too few texts were measured",
    "weights": "the weights that read it stay at home",
}


def find_obstacle(tap: TapInfo, contributed: Collection[str], policy: Policy, *, counts_rows: bool) -> Obstacle | None:
    """Find what keeps a tap's statistics at home; None where nothing does.

    Args:
        tap: the tap.
        contributed: names of the weights that leave.
        policy: the project's policy.
        counts_rows: whether few rows are an obstacle.
    """
    if tap.source != "mixed" and policy.embedding_taps == "withhold":
        return "embeddings"
    if counts_rows and tap.distinct_rows < policy.minimum_rows(tap.width):
        return "few_rows"
    if not any(layer.weight in contributed for layer in tap.layers):
        return "weights"
    return None


def _times(tap: TapInfo, policy: Policy) -> str:
    """Say how often: a tap's rows grow as the texts do, whether it reads a row a token or one a text."""
    factor = policy.minimum_rows(tap.width) / max(tap.distinct_rows, 1)
    return f"{math.ceil(factor * 10) / 10:.1f} times" if factor < 10 else f"{math.ceil(factor):,} times"  # noqa: PLR2004 - two digits


def explain_obstacle(obstacle: Obstacle, tap: TapInfo, policy: Policy) -> str:
    """Say what keeps a tap's statistics at home, and where it can be helped, how."""
    fed = "embeddings feed it directly" if tap.source == "embeddings" else "what feeds it is not known"
    return {
        "embeddings": f"{fed}, and its statistics would reveal the text's token counts (embedding_taps: withhold)",
        "few_rows": (
            f"it has {tap.distinct_rows} distinct rows, the policy wants {policy.minimum_rows(tap.width)} "
            f"({policy.minimum_rows_per_dimension:g} per dimension): measure {_times(tap, policy)} as many texts"
        ),
        "weights": "none of the weights that read it leaves, so nothing could be merged with it",
    }[obstacle]
