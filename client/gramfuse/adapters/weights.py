"""The weights that an adapter makes of a base, computed as they are read: no whole model lies in memory or on disk."""

import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

import torch

from gramfuse.adapters.adapter import Adapter, Change, open_adapter
from gramfuse.contributing.loading import ADAPTER_FILE, ModelFolder, StoredTensor
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, TensorEntry
from gramfuse_shared.errors import WeightsInvalidError
from gramfuse_shared.merging.streaming import (
    TORCH_DTYPES,
    LocalFile,
    Memory,
    TensorFile,
    TensorFiles,
    TensorReader,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_ELEMENTS: Final = 4 * 2**20
"""Elements of a weight that are computed at once: always the same blocks, whoever asks for what, so that the same bytes
come out whenever a part is read."""


class AdaptedWeights:
    """W = W_base + s·BA as a `TensorReader`, in the base's dtype.

    As PEFT's `merge_and_unload` computes it: BA in fp32 (fp64 where the factors are), scaled, added to the base's value
    in the wider of both dtypes and rounded once to the base's.
    """

    def __init__(self, adapter: Adapter, base: TensorReader, file: TensorReader) -> None:
        """Take the changes, the base's tensors and the adapter's own."""
        self._changes = adapter.changes
        self._base = base
        self._file = file
        self._folder = adapter.folder

    @classmethod
    def open(cls, adapter: Adapter, stack: ExitStack) -> Self:
        """Open the files of both until the stack closes; raises FileUnreadableError."""
        below = [stack.enter_context(LocalFile(adapter.base.path / name)) for name in adapter.base.files]
        base = TensorFiles([TensorFile.open(file) for file in below])
        return cls(adapter, base, TensorFile.open(stack.enter_context(LocalFile(adapter.path))))

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """The base's tensors, which are also this model's, without their values."""
        return self._base.tensors

    def read(self, name: str) -> torch.Tensor:
        """Return one weight, on the CPU. Raises as `read_elements` does."""
        shape = self._base.tensors[name].shape
        shape = self._base.tensors[name].shape
        return self.read_elements(name, 0, _count(shape)).reshape(shape)

    def read_elements(self, name: str, start: int, stop: int, memory: Memory | None = None) -> torch.Tensor:
        """Return elements [start, stop) of the flattened weight, on the CPU, in `memory` if given.

        Raises:
            FileUnreadableError: there is no such tensor, or its bytes cannot be had.
            WeightsInvalidError: the adapter holds NaN or infinity.
        """
        change = self._changes.get(name)
        if change is None:
            return self._base.read_elements(name, start, stop, memory)
        size = max(stop - start, 0)
        dtype = TORCH_DTYPES[change.info.dtype]
        weights = torch.empty(size, dtype=dtype) if memory is None else memory.take(size * dtype.itemsize).view(dtype)
        for first, last in blocks_of(change, start, stop):
            block = self._compute(change, first, last)
            begin, end = max(start, first), min(stop, last)
            weights[begin - start : end - start] = block[begin - first : end - first]
        return weights

    def _compute(self, change: Change, first: int, last: int) -> torch.Tensor:
        """Return the elements [first, last) of a changed weight: whole rows of it."""
        dtype = TORCH_DTYPES[change.info.dtype]
        if change.value is None:
            weights = self._base.read_elements(change.info.name, first, last).clone()
        else:
            weights = self._own(change.value, first, last).to(dtype)
        if change.a is not None and change.b is not None:
            columns = change.info.shape[1]
            rows = slice(first // columns, last // columns)
            a, b = self._own(change.a), self._own(change.b)  # [r, in], [out, r]
            product = (b @ a[:, rows]).T if change.transposed else b[rows] @ a
            weights.view(-1, columns).add_(product * change.scale)
        if change.bias is not None:
            weights = (weights + self._own(change.bias, first, last) * change.scale).to(dtype)
        return weights

    def _own(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Return a tensor of the adapter, or elements of it, in fp32 or wider."""
        tensor = self._file.read(name) if last is None else self._file.read_elements(name, first, last)
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if not bool(tensor.isfinite().all()):
            msg = f"{self._folder}: {name} holds NaN or infinity; train it again"
            raise WeightsInvalidError(msg, tensor=name)
        return tensor


def blocks_of(change: Change, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a weight into blocks of whole rows; yield those that hold elements of [start, stop)."""
    count = _count(change.info.shape)
    columns = change.info.shape[1] if change.a is not None else 1
    step = max(BLOCK_ELEMENTS // max(columns, 1), 1) * columns
    for first in range(start // step * step if step else 0, min(stop, count), max(step, 1)):
        yield first, min(first + step, count)


def adapted_folder(folder: Path, base: Path) -> ModelFolder:
    """Present an adapter as a model folder: the tensors that it changes, each in its whole size.

    Raises:
        GramfuseError: see `open_adapter`.
    """
    adapter = open_adapter(folder, base)
    tensors = {
        name: StoredTensor(change.info, AdaptedTensor(adapter, name), 0, _bytes(change))
        for name, change in adapter.changes.items()
    }
    return ModelFolder(folder, (ADAPTER_FILE,), MappingProxyType(tensors), left_out="base")


@dataclass(frozen=True)
class AdaptedTensor:
    """One weight that an adapter makes, as bytes that are computed when they are read."""

    adapter: Adapter
    name: str

    @property
    def path(self) -> Path:
        """What messages call it."""
        return self.adapter.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AdaptedTensor) and (self.name, self.path) == (other.name, other.path)

    def __hash__(self) -> int:
        return hash((self.name, self.path))

    def open(self) -> BinaryIO:
        """Open the adapter and its base, if they are still what was planned.

        Raises:
            FileUnreadableError: a file is gone or was changed.
        """
        for source in self.adapter.sources:
            source.open().close()
        return io.BufferedReader(_Stream(self.adapter, self.name))


class _Stream(io.RawIOBase):
    """The bytes of an adapted weight; holds one block of it."""

    def __init__(self, adapter: Adapter, name: str) -> None:
        self._files = ExitStack()
        self._weights = AdaptedWeights.open(adapter, self._files)
        self._change = adapter.changes[name]
        self._position = 0
        self._block = (0, b"")  # where it begins, and its bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: _bytes(self._change)}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        start, content = self._block
        if not start <= self._position < start + len(content):
            start, content = self._block = self._read_block()
        offset = self._position - start
        target = memoryview(buffer).cast("B")
        piece = content[offset : offset + len(target)]
        target[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self._files.close()
        super().close()

    def _read_block(self) -> tuple[int, bytes]:
        size = DTYPE_BYTES[self._change.info.dtype]
        element = self._position // size
        for first, last in blocks_of(self._change, element, element + 1):
            weights = self._weights.read_elements(self._change.info.name, first, last)
            return first * size, weights.view(torch.uint8).numpy().tobytes()
        return self._position, b""


def _bytes(change: Change) -> int:
    return _count(change.info.shape) * DTYPE_BYTES[change.info.dtype]


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
