"""Follows one forward pass: tells tensors apart, sums each once, and learns which layers read the same ones.

The first time, every tensor gets a sum of its own, and at the end of the pass the sums of tensors with the same
readers become one stream. From then on the layer that reads a tensor first tells its stream, the rows are added there
in place, and at the end of each pass it is checked that the same layers have read it as before.
"""

import weakref
from dataclasses import dataclass, field
from typing import Final

import torch

from gramfuse.measuring.distinct import Readers
from gramfuse.measuring.examples import Examples, PassCounts
from gramfuse.measuring.layers import Layer
from gramfuse.measuring.masking import Selection
from gramfuse.measuring.masks import RowCount
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.stream import Stream
from gramfuse.naming import natural_key
from gramfuse_shared.errors import WiringChangedError

_NO_VERSION: Final = -1


@dataclass(slots=True)
class _Reading:
    """One tensor of a pass: who has read it so far, and where its rows were added."""

    first: str
    turn: int
    stream: Stream
    expected: Readers | None
    count: RowCount
    readers: list[str] = field(default_factory=list)


class Wiring:
    """For each layer, the readers of the tensors that it was the first to read, in their order within a pass."""

    __slots__ = ("_first_reads",)

    def __init__(self) -> None:
        self._first_reads: dict[str, list[Readers]] = {}

    def expect(self, layer: str, turn: int) -> Readers | None:
        """Say who will read the tensor that this layer reads first, as its `turn`-th new one of the pass."""
        known = self._first_reads.get(layer, ())
        return known[min(turn, len(known) - 1)] if known else None

    def learn(self, layer: str, turn: int, readers: Readers) -> None:
        """Note who read that tensor."""
        known = self._first_reads.setdefault(layer, [])
        if turn == len(known):
            known.append(readers)


class ForwardPass:
    """The tensors that linear layers read between the beginning and the end of one outermost module's call."""

    def __init__(self, statistics: Statistics, wiring: Wiring, examples: Examples, *, share_inputs: bool) -> None:
        self._share_inputs = share_inputs
        self._statistics = statistics
        self._wiring = wiring
        self._examples = examples
        self._readings: list[_Reading] = []
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, _Reading]] = {}
        self._turns: dict[str, int] = {}

    def find(self, layer: Layer, tensor: torch.Tensor) -> bool:
        """Note that a layer reads this tensor if another has read it before; else return False.

        A tensor is the same if it is the same object and was not written to since. The reference is weak: nothing is
        kept alive, and a new tensor at the old one's address is told apart by the dead reference.
        """
        entry = self._known.get(id(tensor)) if self._share_inputs else None
        if entry is None or entry[0]() is not tensor or entry[1] != _version(tensor):
            return False
        entry[2].readers.append(layer.weight)
        return True

    def add(self, layer: Layer, tensor: torch.Tensor, selection: Selection) -> None:
        """Add the rows of a tensor that nobody has read before in this pass."""
        turn = self._turns.get(layer.weight, 0)
        self._turns[layer.weight] = turn + 1
        expected = self._wiring.expect(layer.weight, turn)
        stream = self._statistics.streams.get(expected) if expected is not None else None
        if stream is None:
            expected, stream = None, Stream(selection.rows.shape[1])
        stream.add_rows(selection.rows)
        reading = _Reading(layer.weight, turn, stream, expected, selection.count, [layer.weight])
        self._readings.append(reading)
        self._known[id(tensor)] = (weakref.ref(tensor), _version(tensor), reading)

    def finish(self) -> None:
        """Turn sums of new tensors into streams, and check the others.

        Raises:
            WiringChangedError: rows were added to a stream that other layers read than have read them now.
        """
        counts: list[tuple[Readers, RowCount]] = []
        for reading in self._readings:
            readers = tuple(sorted(reading.readers, key=natural_key))
            if reading.expected is None:
                self._adopt(readers, reading.stream)
            elif reading.expected != readers:
                self._refuse(reading.expected, readers)
            self._wiring.learn(reading.first, reading.turn, readers)
            counts.append((readers, reading.count))
        self._statistics.count_later(PassCounts(self._examples, tuple(counts)))

    def _adopt(self, readers: Readers, stream: Stream) -> None:
        known = self._statistics.streams.get(readers)
        if known is None:
            self._statistics.streams[readers] = stream
        else:
            known.adopt(stream)

    def _refuse(self, expected: Readers, readers: Readers) -> None:
        shown = [", ".join(names[:3]) + (", …" if len(names) > 3 else "") for names in (expected, readers)]  # noqa: PLR2004 - enough to find them
        msg = (
            f"an input that {shown[0]} read together before was read by {shown[1]} alone in this forward pass, so one "
            "sum no longer serves them all; collect with share_inputs=False, which measures each layer for itself"
        )
        self._statistics.broken = msg
        raise WiringChangedError(msg, expected=list(expected), found=list(readers))


def _version(tensor: torch.Tensor) -> int:
    # Tensors made in inference mode count no versions; nothing is known of writes to them.
    return _NO_VERSION if tensor.is_inference() else tensor._version  # noqa: SLF001 - autograd's own counter has no public name
