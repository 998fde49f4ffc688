"""The reads of a task, in the order in which its steps ask for them: pure, so that they can be made ahead."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from gramfuse_shared.contract.manifest import TapInfo, TensorInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import gram_tensor_name, packed_length, product_tensor_name
from gramfuse_shared.merging import ready_sums
from gramfuse_shared.merging.refit_steps import HeadStep, LayersStep, RefitStep, ShiftStep, SummedHistograms
from gramfuse_shared.merging.steps import (
    AverageStep,
    CopyStep,
    DeltaStep,
    DiagonalStep,
    GramStep,
    Linear,
    MergeStep,
    RowsStep,
    Task,
)
from gramfuse_shared.merging.terms import ReadySum, Source, Term

CHUNK_BYTES: Final = 16 * 2**20
"""Bytes of one read where a tensor need not be whole; bounds the memory that weights take."""


@dataclass(frozen=True, slots=True)
class Read:
    """Elements [start, stop) of one flattened tensor of a member's or the base's (source None) file."""

    source: Source
    name: str
    start: int
    stop: int
    file: Literal["weights", "statistics", "fisher"] = "weights"


def read_gram(key: str, tap: str, width: int) -> Read:
    """The read of a member's packed Gram matrix."""
    return Read(key, gram_tensor_name(tap), 0, packed_length(width), "statistics")


def read_product(key: str, name: str, count: int) -> Read:
    """The read of a member's product, of `count` elements: of a head by its tap, of a refit layer by its weight."""
    return Read(key, product_tensor_name(name), 0, count, "statistics")


def tap_of(term: Term) -> TapInfo:
    """Return a term's tap; raises ValueError where nothing was measured of it."""
    if term.tap is None:
        msg = f"{term.key}: what is refit from a member's statistics names their tap"
        raise ValueError(msg)
    return term.tap


def element_ranges(count: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut `count` elements into ranges of at most `CHUNK_BYTES`; no elements give one empty range."""
    step = max(CHUNK_BYTES // item_bytes, 1)
    for start in range(0, max(count, 1), step):
        yield start, min(start + step, count)


def row_ranges(linear: Linear, width: int) -> Iterator[tuple[int, int]]:
    """Cut a linear weight along its first stored axis into ranges, none larger than other reads of its group.

    That is `CHUNK_BYTES`, or what the group's packed Gram matrix of `width` takes, in float32: of a larger read more
    pieces are on their way at once.
    """
    rows, columns = linear.output.shape
    most = max(CHUNK_BYTES, packed_length(width) * DTYPE_BYTES["F32"])
    step = max(most // max(columns * DTYPE_BYTES["F32"], 1), 1)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def reads_of(task: Task) -> Iterator[Read]:
    """List a task's reads."""
    for step in task.steps:
        yield from _reads_of_refit(step) if isinstance(step, RefitStep) else _reads_of_step(step)


def _reads_of_step(step: MergeStep) -> Iterator[Read]:
    if isinstance(step, CopyStep):
        for start, stop in element_ranges(_count(step.stored), DTYPE_BYTES[step.stored.dtype]):
            yield Read(step.source, step.stored.name, start, stop)
    elif isinstance(step, RowsStep):
        for part in step.parts:
            yield from _reads_of_step(part.step)
    elif isinstance(step, AverageStep):
        yield from _reads_of_average(step)
    elif isinstance(step, DiagonalStep):
        yield from _reads_of_diagonal(step)
    elif isinstance(step, DeltaStep):
        for source in (None, *(term.key for _ in range(step.turns) for term in step.terms)):
            for start, stop in element_ranges(_count(step.output), DTYPE_BYTES["F32"]):
                yield Read(source, step.output.name, start, stop)
    else:
        yield from _reads_of_group(step)


def _reads_of_average(step: AverageStep) -> Iterator[Read]:
    name = step.output.name
    for start, stop in element_ranges(_count(step.output), DTYPE_BYTES["F32"]):
        yield Read(step.reference, name, start, stop)
        if isinstance(step.terms, ReadySum):
            yield Read(step.terms.key, ready_sums.weighted_name(name), start, stop)
            continue
        for term in step.terms:
            if term.key != step.reference:
                yield Read(term.key, name, start, stop)


def _reads_of_diagonal(step: DiagonalStep) -> Iterator[Read]:
    name = step.output.name
    for start, stop in element_ranges(_count(step.output), DTYPE_BYTES["F32"]):
        yield Read(step.reference, name, start, stop)
        if isinstance(step.terms, ReadySum):
            for name_of in (ready_sums.precision_name, ready_sums.product_name, ready_sums.weighted_name):
                yield Read(step.terms.key, name_of(name), start, stop)
            continue
        for term in step.terms:
            if term.key != step.reference:
                yield Read(term.key, name, start, stop)
            yield Read(term.key, name, start, stop, "fisher")


def _reads_of_refit(step: RefitStep) -> Iterator[Read]:
    match step:
        case ShiftStep():
            yield from _reads_of_shift(step)
        case LayersStep():
            yield from _reads_of_layers(step)
        case HeadStep():
            yield from _reads_of_head(step)


def _reads_of_shift(step: ShiftStep) -> Iterator[Read]:
    yield Read(None, step.stored.name, 0, _count(step.stored))
    if isinstance(step.histograms, SummedHistograms):
        for name, count in step.histograms.tensors:
            yield Read(step.histograms.key, name, 0, count)


def _reads_of_layers(step: LayersStep) -> Iterator[Read]:
    for stored in (tensor for layer in step.layers for tensor in layer.stored):
        yield Read(None, stored.name, 0, _count(stored))
    for term in step.terms:
        yield read_gram(term.key, tap_of(term).name, step.width)
        for layer in step.layers:
            yield read_product(term.key, layer.weight, step.width * layer.height)


def _reads_of_head(step: HeadStep) -> Iterator[Read]:
    for stored in step.stored:
        yield Read(None, stored.name, 0, _count(stored))
    for part in step.parts:
        for term in part.terms:
            tap = tap_of(term)
            yield read_gram(term.key, tap.name, tap.width)
            yield read_product(term.key, tap.name, tap.width * step.weight.shape[0])


def _reads_of_group(step: GramStep) -> Iterator[Read]:
    yield from _weights_of(step, step.reference)
    if isinstance(step.terms, ReadySum):
        key, tap = step.terms.key, str(step.terms.tap)
        yield Read(key, ready_sums.precision_name(tap), 0, packed_length(step.width))
        for linear in step.linears:
            count = _count(linear.output)
            yield Read(key, ready_sums.product_name(linear.output.name), 0, count)
            yield Read(key, ready_sums.weighted_name(linear.output.name), 0, count)
        return
    for term in step.terms:
        if term.key != step.reference:
            yield from _weights_of(step, term.key)
        if term.tap is not None:
            yield read_gram(term.key, term.tap.name, step.width)


def _weights_of(step: GramStep, source: Source) -> Iterator[Read]:
    for linear in step.linears:
        columns = linear.output.shape[1]
        for start, stop in row_ranges(linear, step.width):
            yield Read(source, linear.output.name, start * columns, stop * columns)


def _count(tensor: TensorInfo) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count
