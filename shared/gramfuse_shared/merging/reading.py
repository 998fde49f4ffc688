"""What a task reads: every member's weights and statistics and the base, ahead, counted, and stopped when cancelled."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from gramfuse_shared.contract.statistics_file import gram_tensor_name
from gramfuse_shared.errors import CancelledError, FileUnreadableError, StatisticsInvalidError
from gramfuse_shared.fusion.workspace import is_finite
from gramfuse_shared.merging.read_ahead import HostMemory, ReadAhead
from gramfuse_shared.merging.schedule import Read, read_gram, read_product, reads_of
from gramfuse_shared.merging.steps import GramStep, Task
from gramfuse_shared.merging.streaming import TensorReader
from gramfuse_shared.merging.terms import ReadySum, Source


@dataclass(frozen=True, slots=True)
class MemberReader:
    """One member's files. `statistics` and `fisher` may be None where the plan reads none of them."""

    weights: TensorReader
    statistics: TensorReader | None = None
    fisher: TensorReader | None = None


class Inputs:
    """All sources of a task, read ahead in its own order: `with Inputs(…) as inputs`.

    Each read is a boundary: cancellation is looked for before, bytes are reported after. A tensor is flat, on the
    device, in its stored dtype, and valid until the next read.
    """

    def __init__(
        self,
        task: Task,
        readers: Mapping[str, MemberReader],
        base: TensorReader | None,
        device: torch.device,
        *,
        on_progress: Callable[[int], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Take the sources; nothing is read yet."""
        self._readers = readers
        self._base = base
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._ahead = ReadAhead(reads_of(task), self._fetch, device)

    def read(self, source: Source, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of one flattened parameter of a member or of the base.

        Raises:
            CancelledError: the work was cancelled.
            FileUnreadableError: the bytes cannot be had, or no reader was given for the source.
        """
        return self._next(Read(source, name, start, stop))

    def read_gram(self, key: str, tap: str, width: int) -> torch.Tensor:
        """Return a member's packed Gram matrix of a tap. Raises as `read` does."""
        return self._next(read_gram(key, tap, width))

    def read_product(self, key: str, name: str, count: int) -> torch.Tensor:
        """Return a member's product, flat: of a head by its tap, of a layer by its weight. Raises as `read` does."""
        return self._next(read_product(key, name, count))

    def read_fisher(self, key: str, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of a member's Fisher information of one flattened parameter.

        Raises:
            StatisticsInvalidError: a value is negative, NaN or infinite.
            CancelledError, FileUnreadableError: see `read`.
        """
        values = self._next(Read(key, name, start, stop, "fisher"))
        if values.numel() and not bool((values.amin() >= 0) & (values.amax() < math.inf)):  # NaN fails both
            msg = f"the Fisher information of {name} holds a negative or infinite value or NaN; measure it again"
            raise StatisticsInvalidError(msg)
        return values

    def require_finite_statistics(self, step: GramStep) -> None:
        """Look again, outside of the order, at the statistics of a group that could not be solved.

        Raises:
            StatisticsInvalidError: a member's hold NaN or infinity, which would turn the whole layer into an average.
        """
        if isinstance(step.terms, ReadySum):
            return
        for term in step.terms:
            if term.tap is not None and not is_finite(self._statistics(term.key).read(gram_tensor_name(term.tap.name))):
                msg = f"the statistics of tap {term.tap.name!r} hold NaN or infinity; collect them again"
                raise StatisticsInvalidError(msg)

    def stop_if_cancelled(self) -> None:
        """Look for cancellation.

        Raises:
            CancelledError: the work was cancelled.
        """
        if self._is_cancelled():
            msg = "the merge was cancelled"
            raise CancelledError(msg)

    def __enter__(self) -> Self:
        self._ahead.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.__exit__(kind, error, trace)

    def _next(self, read: Read) -> torch.Tensor:
        self.stop_if_cancelled()
        tensor = self._ahead.next(read)
        self._on_progress(tensor.numel() * tensor.element_size())
        return tensor

    def _fetch(self, read: Read, memory: HostMemory) -> torch.Tensor:
        if read.file == "weights":
            file = self._weights(read.source)
        else:
            file = (self._statistics if read.file == "statistics" else self._fisher)(str(read.source))
        return file.read_elements(read.name, read.start, read.stop, memory)

    def _weights(self, source: Source) -> TensorReader:
        if source is not None:
            return self._member(source).weights
        if self._base is None:
            msg = "the plan reads the base model, but no reader was given for it"
            raise FileUnreadableError(msg)
        return self._base

    def _statistics(self, key: str) -> TensorReader:
        statistics = self._member(key).statistics
        if statistics is None:
            msg = f"no statistics were given for the contribution {key}"
            raise FileUnreadableError(msg)
        return statistics

    def _fisher(self, key: str) -> TensorReader:
        fisher = self._member(key).fisher
        if fisher is None:
            msg = f"no Fisher information was given for the contribution {key}"
            raise FileUnreadableError(msg)
        return fisher

    def _member(self, key: str) -> MemberReader:
        try:
            return self._readers[key]
        except KeyError as error:
            msg = f"no reader was given for the contribution {key}"
            raise FileUnreadableError(msg) from error
