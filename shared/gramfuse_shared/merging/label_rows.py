"""Rows of shared heads that not every member trained: which rows have the same members. Pure.

In the multi-label heads of the RegMean paper each organization has labels of its own: a row of the head is merged over
those that trained it.
"""

from collections.abc import Sequence
from typing import TypeAlias

from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.errors import RecipeInvalidError
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.steps import CopyStep, RowPart

RowSet: TypeAlias = tuple[tuple[int, ...], list[Member]]
"""Rows, and the members that trained them."""


def sets_of_rows(output: TensorInfo, holders: Sequence[Member]) -> list[RowSet]:
    """Group a parameter's rows by who trained them, in the order of each group's first row.

    No groups where every holder trained every row, or says nothing of them.

    Raises:
        RecipeInvalidError: more than `limits.MAX_LABEL_SETS` groups.
    """
    saying = [
        (number, member.labels.trained)
        for number, member in enumerate(holders)
        if member.labels is not None and output.name in member.labels.parameters
    ]
    if not saying:
        return []
    everybody = (1 << len(holders)) - 1
    silent = everybody & ~sum(1 << number for number, _ in saying)
    masks = [silent] * output.shape[0]  # who trained the row, a bit for each holder
    for number, trained in saying:
        for row in trained:
            masks[row] |= 1 << number
    groups: dict[int, list[int]] = {}
    for row, mask in enumerate(masks):
        groups.setdefault(mask, []).append(row)
    if groups.keys() == {everybody}:
        return []
    if len(groups) > limits.MAX_LABEL_SETS:
        msg = (
            f"the rows of {output.name} were trained by {len(groups)} different sets of contributions; at most "
            f"{limits.MAX_LABEL_SETS} are merged each by itself: exclude it, or agree on fewer combinations of labels"
        )
        raise RecipeInvalidError(msg)
    return [
        (tuple(rows), [member for number, member in enumerate(holders) if mask >> number & 1])
        for mask, rows in groups.items()
    ]


def why_rows(sets: Sequence[RowSet], parts: Sequence[RowPart], holders: int) -> str:
    """Say how many rows of a head are not merged from all of its holders, and how many are the base's."""
    total = sum(len(rows) for rows, _ in sets)
    fewer = sum(len(rows) for rows, sharing in sets if len(sharing) < holders)
    of_base = sum(len(part.rows) for part in parts if isinstance(part.step, CopyStep) and part.step.source is None)
    told = f"{fewer} of {total} label rows were trained by fewer than the {holders} contributions that hold them"
    return f"{told}; {of_base} have the base's values" if of_base else told
