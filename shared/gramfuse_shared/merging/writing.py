"""Write a safetensors file in one pass: header first, tensors in order, complete only on a clean exit."""

import errno
import math
from collections.abc import Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from gramfuse_shared.contract.manifest import FileEntry, TensorInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, format_header
from gramfuse_shared.errors import FileUnwritableError
from gramfuse_shared.merging.streaming import TORCH_DTYPES
from gramfuse_shared.merging.write_behind import WriteBehind


def open_for_writing(path: Path) -> RawIOBase:
    """Open a new file without a buffer, so that a full disk is noticed at the write that fills it."""
    return path.open("wb", buffering=0)


class ShardWriter:
    """Writes beside the target and behind the caller; on a clean exit syncs and renames, on any other leaves nothing.

    `with ShardWriter(target, tensors) as shard: shard.write(name, elements)`; afterwards `shard.entry`.
    """

    def __init__(self, target: Path, tensors: Sequence[TensorInfo], metadata: Mapping[str, str] | None = None) -> None:
        """Fix the file's layout; nothing is opened yet."""
        self._target = target
        self._beside = target.with_name(target.name + ".partial")
        self._tensors = tuple(tensors)
        self._metadata = dict(metadata or {})
        self._current = 0
        self._written = 0  # elements of the current tensor
        self._file: RawIOBase | None = None
        self._behind: WriteBehind | None = None
        self._entry: FileEntry | None = None

    @property
    def entry(self) -> FileEntry:
        """The finished file by name, length and digest.

        Raises:
            ValueError: it is not finished.
        """
        if self._entry is None:
            msg = f"{self._target.name} is not finished"
            raise ValueError(msg)
        return self._entry

    def write(self, name: str, elements: torch.Tensor) -> None:
        """Append elements to the tensor `name`, which must be the next one that is not complete.

        Raises:
            ValueError: another tensor is next, of another dtype, or with fewer elements left.
            FileUnwritableError: the disk is full or fails.
        """
        expected = self._tensors[self._current] if self._current < len(self._tensors) else None
        if expected is None or expected.name != name or elements.dtype != TORCH_DTYPES[expected.dtype]:
            msg = f"{name} of {elements.dtype} was given where {expected} is next"
            raise ValueError(msg)
        count, self._written = math.prod(expected.shape), self._written + elements.numel()
        if self._written > count:
            msg = f"{name} has {count} elements; {self._written} were given"
            raise ValueError(msg)
        if self._behind is None:
            msg = "the writer is not open; use it in a with statement"
            raise ValueError(msg)
        try:
            self._behind.append(elements)
        except OSError as error:
            raise self._unwritable(error) from error
        if self._written == count:
            self._current, self._written = self._current + 1, 0

    def __enter__(self) -> Self:
        layout = [(tensor.name, str(tensor.dtype), tensor.shape) for tensor in self._tensors]
        try:
            self._file = open_for_writing(self._beside)
        except OSError as error:
            raise self._unwritable(error) from error
        self._behind = WriteBehind(self._file)
        self._behind.append_bytes(format_header(layout, self._metadata))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._finish()
        except BaseException:
            self._abandon()
            raise

    def _finish(self) -> None:
        if self._current < len(self._tensors):
            msg = f"{self._tensors[self._current].name} was not written completely"
            raise ValueError(msg)
        if self._file is None or self._behind is None:  # pragma: no cover - __enter__ opened it
            return
        try:
            digest = self._behind.finish()
            self._file.close()
            self._beside.replace(self._target)
        except OSError as error:
            raise self._unwritable(error) from error
        self._entry = FileEntry(name=self._target.name, bytes=self._behind.length, sha256=digest)

    def _abandon(self) -> None:
        if self._behind is not None:
            self._behind.stop()
        if self._file is not None:
            self._file.close()
        self._beside.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> FileUnwritableError:
        needed = sum(math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype] for tensor in self._tensors)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            msg = f"no space left for {self._target}, which takes {needed} bytes; free some or choose another folder"
            return FileUnwritableError(msg, bytes_needed=needed)
        msg = f"{self._target} cannot be written: {error.strerror or error}"
        return FileUnwritableError(msg)
