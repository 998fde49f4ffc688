"""The matrices of a block in groups that are refit one after the other: none reads what another of its group gives."""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Final

from gramfuse.matching.families import FAMILIES
from gramfuse.refining.blocks import Block
from gramfuse_shared.contract.policy import Policy


def _places() -> dict[str, int]:
    """Give each name within a block, as the known architectures have them, its place on a text's way."""
    places: dict[str, int] = {}
    for block in (block for family in FAMILIES.values() for block in family.blocks):
        way: list[tuple[str, ...]] = []
        for attention in block.attentions:
            way += [(*attention.query, *attention.key, attention.value), (attention.out,)]
        for place, names in enumerate([*way, block.up, (block.down,)]):
            places |= dict.fromkeys(names, place)
    return places


_PLACES: Final[Mapping[str, int]] = MappingProxyType(_places())


def plan_groups(blocks: Sequence[Block], layers: Collection[str], policy: Policy) -> tuple[Block, ...]:
    """Cut blocks into groups in forward order: queries, keys and values; the attention's output; up; down.

    A group bears its block's name. Matrices that no known architecture names go with the last group of their block; so
    does everything where none is known. Where the policy withholds statistics that embeddings feed, the first group of
    a stack is measured with the second: nobody could answer for the first alone.

    Args:
        blocks: in forward order.
        layers: weights that may be refit; others are left out.
        policy: the project's policy.
    """
    groups: list[Block] = []
    stacks: set[str] = set()
    for block in blocks:
        parts = _cut(block, layers)
        stack = block.name.rpartition(".")[0]
        if stack not in stacks and policy.embedding_taps == "withhold":
            parts = [[*parts[0], *parts[1]], *parts[2:]] if len(parts) > 1 else parts
        stacks.add(stack)
        groups += [Block(block.name, tuple(part)) for part in parts]
    return tuple(groups)


def _cut(block: Block, layers: Collection[str]) -> list[list[str]]:
    chosen = [layer for layer in block.layers if layer in layers]
    known = [place for place in (_place(block, layer) for layer in chosen) if place is not None]
    last = max(known, default=0)

    def place_of(layer: str) -> int:
        place = _place(block, layer)
        return last if place is None else place

    ordered = sorted(chosen, key=place_of)  # of equal places in the block's order
    return [list(part) for _, part in groupby(ordered, key=place_of)]


def _place(block: Block, layer: str) -> int | None:
    return _PLACES.get(layer.removeprefix(f"{block.name}.").removesuffix(".weight"))
