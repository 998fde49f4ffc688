"""The file of sums: what the survivors' words come to, in F64 and scaled back, as `merging.ready_sums` reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from gramfuse_shared.contract.manifest import FileEntry, TensorInfo
from gramfuse_shared.contract.recipe import DEFAULT_WEIGHT, resolve
from gramfuse_shared.contract.secure_session import (
    SessionManifest,
    SummedTensor,
    precision_name,
    product_name,
    weighted_name,
)
from gramfuse_shared.merging.ready_sums import SummedMember
from gramfuse_shared.merging.schedule import element_ranges
from gramfuse_shared.merging.streaming import TensorReader
from gramfuse_shared.merging.writing import ShardWriter
from gramfuse_shared.secure.ring import decode
from gramfuse_shared.secure.summands import MeanSquares, block_ranges
from gramfuse_shared.secure.unmasking import TensorSum, Unmasking
from gramfuse_shared.secure.words import as_words

DEAD_QUANTA: Final = 2**20
"""A feature whose summed square is below so many quanta is dead: it keeps the mean; so does an element of so little
Fisher information. Of a value of few quanta few bits are right, and what is divided by it would be noise."""

_WORD_BYTES: Final = 8


def summed_member(
    session: SessionManifest, unmasking: Unmasking, base: Mapping[str, TensorInfo], key: str
) -> SummedMember:
    """Describe the sums to the engine: Σcᵢ over the survivors of each parameter, and the taps.

    Args:
        session: what was summed.
        unmasking: who survived.
        base: the base's tensors.
        key: under which the engine reads the file of sums.
    """
    summed = {tensor.name for tensor in session.sums}
    surviving = {message.sender for message in unmasking.masked}
    members = [member for member in session.members if member.organization in surviving]
    weights = {
        name: sum(resolve(member.weight, name, default=DEFAULT_WEIGHT) for member in members)
        for name in base
        if weighted_name(name) in summed
    }
    return SummedMember(key, f"the sum of {len(members)} organizations", weights, session.taps, session.elements)


def write_sums(
    target: Path,
    session: SessionManifest,
    unmasking: Unmasking,
    files: Mapping[str, TensorReader],
    scales: MeanSquares,
) -> FileEntry:
    """Add the survivors' words up, take the masks off, and write the sums as numbers.

    Args:
        target: the file to write.
        session: what was summed.
        unmasking: whose words, and which masks remain in their sum.
        files: the survivors' files of words by organization.
        scales: D of each tap that was summed.

    Raises:
        FileUnreadableError, FileUnwritableError: an input or the disk.
    """
    survivors = [files[message.sender] for message in unmasking.masked]
    layout = [TensorInfo(name=tensor.name, dtype="F64", shape=tensor.shape) for tensor in session.sums]
    decoding = _Decoding(session, scales)
    with ShardWriter(target, layout) as shard:
        for number, tensor in enumerate(session.sums):
            total = TensorSum(unmasking, number)
            for part in decoding.parts(tensor):
                chunks = [as_words(file.read_elements(tensor.name, part.start, part.stop)) for file in survivors]
                words = torch.from_numpy(total.add(chunks).view(np.int64))
                shard.write(tensor.name, decoding.numbers(tensor, part, words))
    return shard.entry


@dataclass(frozen=True, slots=True)
class _Part:
    """Elements [start, stop) of a flat tensor; of a packed matrix, the rows [first, last) that they are."""

    start: int
    stop: int
    block: tuple[int, int] | None = None


class _Decoding:
    """Words to numbers: precisions D^½S'D^½, products R'D^½, and differences as they are."""

    def __init__(self, session: SessionManifest, scales: MeanSquares) -> None:
        self._roots = {tap.name: scales[tap.name].sqrt() for tap in session.taps}
        self._precisions = {precision_name(tap.name): tap for tap in session.taps}
        self._products = {product_name(layer.weight): tap for tap in session.taps for layer in tap.layers}
        coarsest: dict[str, int] = {}
        for tensor in session.sums:
            tap = self._precisions.get(tensor.name) or self._products.get(tensor.name)
            if tap is not None:
                coarsest[tap.name] = min(coarsest.get(tap.name, tensor.fraction_bits), tensor.fraction_bits)
        bits = {tensor.name: tensor.fraction_bits for tensor in session.sums}
        self._dead_elements = {
            precision_name(name): DEAD_QUANTA * 2.0 ** -min(bits[precision_name(name)], bits[product_name(name)])
            for name in session.elements
        }
        self._dead_below = {name: DEAD_QUANTA * 2.0**-bits for name, bits in coarsest.items()}

    def parts(self, tensor: SummedTensor) -> Iterator[_Part]:
        """Cut the flat tensor: a packed matrix into its block rows."""
        tap = self._precisions.get(tensor.name)
        if tap is None:
            for start, stop in element_ranges(tensor.count, _WORD_BYTES):
                yield _Part(start, stop)
            return
        offset = 0
        for first, last in block_ranges(tap.width):
            length = (last - first) * last
            yield _Part(offset, offset + length, (first, last))
            offset += length

    def numbers(self, tensor: SummedTensor, part: _Part, words: torch.Tensor) -> torch.Tensor:
        """Return the numbers of one part, flat."""
        numbers = decode(words, tensor)
        if part.block is not None:
            tap, (first, last) = self._precisions[tensor.name].name, part.block
            root, block = self._roots[tap], numbers.view(last - first, last)
            diagonal = block[:, first:].diagonal()
            diagonal.masked_fill_(diagonal < self._dead_below[tap], 0.0)
            block.mul_(root[first:last, None]).mul_(root[:last])
        elif tensor.name in self._products:
            tap = self._products[tensor.name].name
            root = self._roots[tap]
            numbers.mul_(root[torch.arange(part.start, part.stop) % len(root)])
        elif tensor.name in self._dead_elements:
            numbers.masked_fill_(numbers < self._dead_elements[tensor.name], 0.0)
        return numbers
