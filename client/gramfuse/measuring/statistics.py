"""What is measured at the taps of a model: a commutative monoid, and its file.

Measured is per *stream*: the tensors that one same set of linear layers reads. DeBERTa's queries and keys read the
hidden states and the relative embeddings, its values the hidden states alone: two streams, and each product is taken
once. A *tap* is what the merge needs: the layers whose inputs are the same streams, with the sum of these streams'
Gram matrices. So statistics of runs in which layers shared their inputs differently add exactly.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch

from gramfuse.contributing.origin import read_origin
from gramfuse.measuring.distinct import DistinctRows, Readers
from gramfuse.measuring.examples import PassCounts
from gramfuse.measuring.statistics_io import read_statistics, write_statistics
from gramfuse.measuring.stream import Stream, worst_source
from gramfuse.naming import natural_key
from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import CollectorSettings, LayerInfo, TapInfo
from gramfuse_shared.contract.statistics_file import StatisticsMetadata
from gramfuse_shared.errors import StateError, StatisticsInvalidError, StatisticsMalformedError
from gramfuse_shared.fusion import packing

Layout = Literal["out_in", "in_out"]


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap's description and its packed Gram matrix, fp32 [packed_length(width)]."""

    info: TapInfo
    gram: torch.Tensor

    def unpacked(self) -> torch.Tensor:
        """Return the Gram matrix XᵀX, [width, width] fp32: the raw sum over `info.rows` rows."""
        return packing.unpack(self.gram, self.info.width)


class Statistics:
    """Gram matrices of the inputs of a model's linear layers, with row counts.

    `one + other` is as if both had been measured in one run; the zero is `Statistics()`. Rows of the same example are
    counted once in `distinct_rows`, also across a sum, as long as neither part was loaded from a file: files hold no
    trace of single examples, so texts measured into two files count twice.

    `measured_on` is a digest of the model's weights, where they came from a folder. It is noted in the file for this
    machine alone: nothing that leaves has it.
    """

    def __init__(
        self,
        streams: Mapping[Readers, Stream] | None = None,
        *,
        layouts: Mapping[str, Layout] | None = None,
        distinct: DistinctRows | None = None,
        settings: CollectorSettings | None = None,
        base: str | None = None,
        measured_on: str | None = None,
    ) -> None:
        self.streams: dict[Readers, Stream] = dict(streams or {})
        self.layouts: dict[str, Layout] = dict(layouts or {})
        self.distinct = distinct or DistinctRows()
        self.settings = settings
        self.base = base
        self.measured_on = measured_on
        self.broken: str | None = None
        self._uncounted: deque[PassCounts] = deque()

    def count_later(self, counts: PassCounts) -> None:
        """Take the counts of a pass; those whose masks and inputs have reached the CPU are added."""
        self._uncounted.append(counts)
        while self._uncounted and self._uncounted[0].is_ready():
            self._count(self._uncounted.popleft())

    def settle(self) -> None:
        """Wait for what a device has still to tell, and count it. Whatever asks for rows does this first."""
        while self._uncounted:
            self._count(self._uncounted.popleft())

    def _count(self, counts: PassCounts) -> None:
        hashes = counts.examples.hashes()
        profile: dict[Readers, list[int]] = {}
        for readers, count in counts.counts:
            self.streams[readers].rows += count.rows()
            per_example = count.per_example()
            if per_example is not None and len(per_example) == len(hashes):
                known = profile.setdefault(readers, [0] * len(hashes))
                for position, rows in enumerate(per_example):
                    known[position] += rows
        for position, example in enumerate(hashes):
            self.distinct.record(example, ((readers, rows[position]) for readers, rows in profile.items()))

    def __add__(self, other: Self) -> Self:
        """Return the statistics of both runs together.

        Raises:
            StatisticsMalformedError: they were measured with other settings or on another base model.
        """
        if self.broken or other.broken:
            raise StateError(self.broken or other.broken or "")
        self.settle()
        other.settle()
        if self.settings and other.settings and self.settings != other.settings:
            msg = f"statistics measured with {self.settings} and with {other.settings} do not add"
            raise StatisticsMalformedError(msg)
        if self.base and other.base and self.base != other.base:
            msg = f"statistics of base {self.base} and of base {other.base} do not add"
            raise StatisticsMalformedError(msg)
        streams = {
            readers: _sum(self.streams.get(readers), other.streams.get(readers))
            for readers in self.streams.keys() | other.streams.keys()
        }
        return type(self)(
            streams,
            layouts=self.layouts | other.layouts,
            distinct=self.distinct + other.distinct,
            settings=self.settings or other.settings,
            base=self.base or other.base,
            measured_on=self._measured_like(other),
        )

    def _measured_like(self, other: Self) -> str | None:
        """Return which model both were measured on; None where they say different ones, or none."""
        noted = {self.measured_on, other.measured_on} - {None}
        return noted.pop() if len(noted) == 1 else None

    def __eq__(self, other: object) -> bool:
        """Tell whether both say the same of every tap, to the last bit."""
        if not isinstance(other, Statistics):
            return NotImplemented
        ours, theirs = self.taps, other.taps
        return (
            (self.base, self.settings) == (other.base, other.settings)
            and [tap.info for tap in ours] == [tap.info for tap in theirs]
            and all(torch.equal(one.gram.cpu(), two.gram.cpu()) for one, two in zip(ours, theirs, strict=True))
        )

    __hash__ = None  # type: ignore[assignment] # statistics grow while they are measured

    def __repr__(self) -> str:
        self.settle()
        taps = self._layers_of_taps()
        rows = max((self._rows(layers[0]) for layers in taps), default=0)
        return f"Statistics({len(taps)} taps, at most {rows:,} rows)"

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The taps that saw rows, in natural order of their layers' names."""
        self.settle()
        distinct = self.distinct.count()
        return tuple(self._tap(layers, distinct) for layers in self._layers_of_taps())

    @property
    def metadata(self) -> StatisticsMetadata:
        """What a file of these statistics would say about them, without the matrices.

        Raises:
            StateError: nothing was measured.
        """
        self.settle()
        distinct = self.distinct.count()
        return self._metadata(tuple(self._info(layers, distinct) for layers in self._layers_of_taps()))

    def save(self, path: str | Path) -> None:
        """Write a statistics file: beside, then renamed, so that nobody sees half of one.

        Raises:
            StateError: nothing was measured, or the measurement went wrong.
            StatisticsInvalidError: a sum is not finite; the message names the tap.
        """
        if self.broken:
            raise StateError(self.broken)
        self.settle()
        distinct = self.distinct.count()
        layers_of_taps = self._layers_of_taps()
        metadata = self._metadata(tuple(self._info(layers, distinct) for layers in layers_of_taps))
        # One tap at a time: the packed matrices of a large model do not fit into memory twice.
        taps = (_finite(self._tap(layers, distinct)) for layers in layers_of_taps)
        write_statistics(Path(path), metadata, taps, measured_on=self.measured_on)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a statistics file.

        Raises:
            FileUnreadableError: there is no such file.
            HeaderMalformedError, StatisticsMalformedError: it is not a statistics file.
        """
        metadata, grams = read_statistics(Path(path))
        readers_of = {tap.name: tuple(layer.weight for layer in tap.layers) for tap in metadata.taps}
        return cls(
            {
                readers_of[tap.name]: Stream.of(tap.width, gram, rows=tap.rows, source=tap.source)
                for tap, gram in zip(metadata.taps, grams, strict=True)
            },
            layouts={layer.weight: layer.layout for tap in metadata.taps for layer in tap.layers},
            distinct=DistinctRows(anonymous={readers_of[tap.name]: tap.distinct_rows for tap in metadata.taps}),
            settings=metadata.collector,
            base=metadata.base,
            measured_on=read_origin(Path(path)),
        )

    # --- from streams to taps ----------------------------------------------------------------------------------------

    def _layers_of_taps(self) -> list[tuple[str, ...]]:
        """Group the layers that read the same streams equally often; in natural order."""
        read: dict[str, Counter[Readers]] = {}
        for readers, stream in self.streams.items():
            if stream.rows:
                for layer in readers:
                    read.setdefault(layer, Counter())[readers] += 1
        taps: dict[frozenset[tuple[Readers, int]], list[str]] = {}
        for layer, streams in read.items():
            taps.setdefault(frozenset(streams.items()), []).append(layer)
        grouped = [tuple(sorted(layers, key=natural_key)) for layers in taps.values()]
        return sorted(grouped, key=lambda layers: natural_key(layers[0]))

    def _streams_of(self, layer: str) -> list[tuple[Readers, int]]:
        """List the streams that a layer reads, and how often; in an order that does not depend on how they came."""
        return sorted((readers, readers.count(layer)) for readers in self.streams if layer in readers)

    def _rows(self, layer: str) -> int:
        return sum(self.streams[readers].rows * times for readers, times in self._streams_of(layer))

    def _distinct(self, readers: Readers, distinct: Counter[Readers]) -> int:
        """Return the rows of distinct examples; of weighted ones no more than say as much as rows of equal weight."""
        effective = self.streams[readers].effective_rows
        if effective is None:
            return distinct[readers]
        loaded = self.distinct.anonymous[readers]  # counted so when they were saved
        return min(distinct[readers] - loaded, int(effective)) + loaded

    def _info(self, layers: tuple[str, ...], distinct: Counter[Readers]) -> TapInfo:
        read = [(readers, self.streams[readers], times) for readers, times in self._streams_of(layers[0])]
        return TapInfo(
            name=layers[0].removesuffix(".weight"),
            width=read[0][1].width,
            rows=min(sum(stream.rows * times for _, stream, times in read), limits.MAX_ROWS),
            distinct_rows=min(sum(self._distinct(readers, distinct) for readers, _, _ in read), limits.MAX_ROWS),
            source=worst_source(stream.source for _, stream, _ in read if stream.rows),
            layers=tuple(LayerInfo(weight=layer, layout=self.layouts.get(layer, "out_in")) for layer in layers),
        )

    def _tap(self, layers: tuple[str, ...], distinct: Counter[Readers]) -> Tap:
        gram: torch.Tensor | None = None
        for readers, times in self._streams_of(layers[0]):
            part = self.streams[readers].gram.cpu()
            part = part * times if times > 1 else part
            gram = part if gram is None else gram + part
        if gram is None:
            msg = f"no stream is read by {layers[0]}"
            raise StateError(msg)
        return Tap(info=self._info(layers, distinct), gram=gram)

    def _metadata(self, taps: tuple[TapInfo, ...]) -> StatisticsMetadata:
        if not taps or self.settings is None:
            msg = "nothing was measured: no forward pass ran, or none reached a linear layer with an unpadded row"
            raise StateError(msg)
        return StatisticsMetadata(base=self.base, collector=self.settings, taps=taps)


def _sum(one: Stream | None, other: Stream | None) -> Stream:
    if one is not None and other is not None:
        return one + other
    alone = one or other
    if alone is None:
        msg = "the sum of no streams"
        raise StateError(msg)
    return alone.copy()


def _finite(tap: Tap) -> Tap:
    if not bool(torch.isfinite(tap.gram).all()):
        names = ", ".join(layer.weight for layer in tap.info.layers[:3])
        msg = (
            f"the inputs of tap {tap.info.name!r} (read by {names}) hold NaN or infinity, or their squares overflow "
            "fp32: check the model's outputs on these texts, and whether training diverged"
        )
        raise StatisticsInvalidError(msg, tap=tap.info.name)
    return tap
