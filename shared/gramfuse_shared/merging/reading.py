"""What a task reads: every member's weights and statistics and the base, counted, and stopped when cancelled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gramfuse_shared.contract.statistics_file import gram_tensor_name
from gramfuse_shared.errors import CancelledError, FileUnreadableError, StatisticsInvalidError
from gramfuse_shared.merging.steps import Source
from gramfuse_shared.merging.streaming import TensorReader


def is_finite(values: torch.Tensor) -> bool:
    """Tell whether a floating-point tensor holds neither NaN nor infinity, without a copy of its size."""
    if values.numel() == 0:
        return True
    if values.element_size() == 1:  # float8 has no reductions
        values = values.float()
    low, high = values.aminmax()  # NaN is both
    return bool(torch.isfinite(low) & torch.isfinite(high))


@dataclass(frozen=True, slots=True)
class MemberReader:
    """One member's files. `statistics` may be None where the plan reads none of it."""

    weights: TensorReader
    statistics: TensorReader | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """All sources of a task. Each read is a boundary: cancellation is looked for before, bytes are reported after."""

    readers: Mapping[str, MemberReader]
    base: TensorReader | None
    on_progress: Callable[[int], None]
    is_cancelled: Callable[[], bool]

    def read(self, source: Source, name: str) -> torch.Tensor:
        """Return one parameter of a member or of the base, as stored, on the CPU.

        Raises:
            CancelledError: the work was cancelled.
            FileUnreadableError: the bytes cannot be had, or no reader was given for the source.
        """
        self.stop_if_cancelled()
        return self._count(self._weights(source).read(name))

    def read_elements(self, source: Source, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of one flattened parameter. Raises as `read` does."""
        self.stop_if_cancelled()
        return self._count(self._weights(source).read_elements(name, start, stop))

    def read_gram(self, key: str, tap: str) -> torch.Tensor:
        """Return a member's packed Gram matrix of a tap.

        Raises:
            StatisticsInvalidError: it holds NaN or infinity, which would turn the whole layer into an average.
            CancelledError, FileUnreadableError: as `read`.
        """
        self.stop_if_cancelled()
        statistics = self._member(key).statistics
        if statistics is None:
            msg = f"no statistics were given for the contribution {key}"
            raise FileUnreadableError(msg)
        gram = self._count(statistics.read(gram_tensor_name(tap)))
        if not is_finite(gram):
            msg = f"the statistics of tap {tap!r} hold NaN or infinity; collect them again"
            raise StatisticsInvalidError(msg)
        return gram

    def stop_if_cancelled(self) -> None:
        """Look for cancellation.

        Raises:
            CancelledError: the work was cancelled.
        """
        if self.is_cancelled():
            msg = "the merge was cancelled"
            raise CancelledError(msg)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        self.on_progress(tensor.numel() * tensor.element_size())
        return tensor

    def _weights(self, source: Source) -> TensorReader:
        if source is not None:
            return self._member(source).weights
        if self.base is None:
            msg = "the plan reads the base model, but no reader was given for it"
            raise FileUnreadableError(msg)
        return self.base

    def _member(self, key: str) -> MemberReader:
        try:
            return self.readers[key]
        except KeyError as error:
            msg = f"no reader was given for the contribution {key}"
            raise FileUnreadableError(msg) from error
