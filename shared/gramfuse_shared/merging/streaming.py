"""Read tensors singly from anywhere that gives byte ranges."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self

import torch

from gramfuse_shared.contract.safetensors_header import (
    DTYPE_BYTES,
    LENGTH_BYTES,
    Header,
    TensorEntry,
    parse_header,
    parse_header_length,
)
from gramfuse_shared.errors import FileUnreadableError, HeaderMalformedError

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "I16": torch.int16,
        "U16": torch.uint16,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I32": torch.int32,
        "U32": torch.uint32,
        "F32": torch.float32,
        "I64": torch.int64,
        "U64": torch.uint64,
        "F64": torch.float64,
    }
)
"""Safetensors' names of dtypes."""


LOCAL_READS: Final = max(1, min(8, (os.cpu_count() or 1) // 2))
"""Reads at once of a local file: one thread copies from the page cache at a tenth of what a device takes."""

SEGMENT_BYTES: Final = 8 * 2**20
"""Bytes of one read: larger ones are cut, so that sources that hand out copies take this much memory for each."""


class ByteSource(Protocol):
    """A file's bytes, wherever they lie. May be read from several threads."""

    @property
    def parallel(self) -> int:
        """Reads that are worth having on their way at once."""
        ...

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on, all of them.

        Raises:
            FileUnreadableError: they cannot be had.
        """
        ...


class Memory(Protocol):
    """Where a tensor is read into."""

    def take(self, size: int) -> torch.Tensor:
        """Return `size` bytes of the CPU's memory with undefined content, uint8."""
        ...


class TensorReader(Protocol):
    """Tensors by name, each read by itself."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """All tensors without their values."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype and shape, on the CPU."""
        ...

    def read_elements(self, name: str, start: int, stop: int, memory: Memory | None = None) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor, as stored, on the CPU, in `memory` if given."""
        ...


class LocalFile:
    """A file on disk as a `ByteSource`; open until closed."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            FileUnreadableError: it is missing or may not be read.
        """
        self._path = path
        try:
            self._file = path.open("rb", buffering=0)
            self._size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise FileUnreadableError(msg) from error

    @property
    def parallel(self) -> int:
        """Reads that are worth having on their way at once."""
        return LOCAL_READS

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._size

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on.

        Raises:
            FileUnreadableError: the file became shorter, or the disk fails.
        """
        rest = target
        try:
            while rest:
                count = os.preadv(self._file.fileno(), [rest], start + len(target) - len(rest))
                if not count:
                    break
                rest = rest[count:]
        except OSError as error:
            msg = f"{self._path} cannot be read: {error.strerror}"
            raise FileUnreadableError(msg) from error
        if rest:
            msg = f"{self._path} ends before byte {start + len(target)}; it changed while it was read"
            raise FileUnreadableError(msg)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorFile:
    """A safetensors file: a checked header and its tensors."""

    def __init__(self, source: ByteSource, header: Header) -> None:
        """Take a source and the header that was parsed from it; `open` does both."""
        self._source = source
        self.header = header

    @classmethod
    def open(cls, source: ByteSource) -> Self:
        """Read and check the header.

        Raises:
            HeaderMalformedError, HeaderTooLargeError: the file is not well-formed.
            FileUnreadableError: it cannot be read.
        """
        if source.size < LENGTH_BYTES:
            msg = f"the file has {source.size} bytes; a safetensors file has at least {LENGTH_BYTES}"
            raise HeaderMalformedError(msg)
        prefix = read_bytes(source, 0, LENGTH_BYTES)
        begin = LENGTH_BYTES + parse_header_length(prefix)
        rest = read_bytes(source, LENGTH_BYTES, min(begin, source.size))
        return cls(source, parse_header(prefix + rest, source.size))

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """All tensors without their values, in file order."""
        return self.header.tensors

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype and shape, on the CPU.

        Raises:
            FileUnreadableError: there is no such tensor, or its bytes cannot be had.
        """
        entry = self._entry(name)
        return self._decode(entry, entry.start, entry.end, None).reshape(entry.shape)

    def read_elements(self, name: str, start: int, stop: int, memory: Memory | None = None) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor, in its stored dtype, on the CPU, in `memory` if given.

        Raises:
            FileUnreadableError: there is no such tensor, or its bytes cannot be had.
        """
        entry = self._entry(name)
        size = DTYPE_BYTES[entry.dtype]
        return self._decode(entry, entry.start + start * size, min(entry.start + stop * size, entry.end), memory)

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.header.tensors[name]
        except KeyError as error:
            msg = f"the file holds no tensor {name!r}"
            raise FileUnreadableError(msg) from error

    def _decode(self, entry: TensorEntry, start: int, end: int, memory: Memory | None) -> torch.Tensor:
        size = max(end - start, 0)
        content = torch.empty(size, dtype=torch.uint8) if memory is None else memory.take(size)
        if size:
            _read_segments(self._source, start, content.numpy().data)
        return content.view(TORCH_DTYPES[entry.dtype])


def _read_segments(source: ByteSource, start: int, target: memoryview) -> None:
    """Fill `target` with the bytes from `start` on, by reads of at most `SEGMENT_BYTES`, several at once."""
    offsets = range(0, len(target), SEGMENT_BYTES)
    segments = [(start + offset, target[offset : offset + SEGMENT_BYTES]) for offset in offsets]
    run = map if len(segments) == 1 or source.parallel == 1 else _pool(source.parallel).map
    for _ in run(lambda segment: source.read_into(*segment), segments):
        pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gramfuse-read")


def read_bytes(source: ByteSource, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a source. Raises as `read_into` does."""
    content = bytearray(end - start)
    source.read_into(start, memoryview(content))
    return bytes(content)


class TensorFiles:
    """Several safetensors files as one: a sharded model."""

    def __init__(self, files: Iterable[TensorFile]) -> None:
        """Join files.

        Raises:
            HeaderMalformedError: two of them hold the same tensor.
        """
        self._file_of: dict[str, TensorFile] = {}
        for file in files:
            for name in file.tensors:
                if name in self._file_of:
                    msg = f"tensor {name!r} is stored in two files"
                    raise HeaderMalformedError(msg)
                self._file_of[name] = file

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """All tensors of all files without their values."""
        return {name: file.tensors[name] for name, file in self._file_of.items()}

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, as `TensorFile.read` does."""
        return self._of(name).read(name)

    def read_elements(self, name: str, start: int, stop: int, memory: Memory | None = None) -> torch.Tensor:
        """Return some elements of one tensor, as `TensorFile.read_elements` does."""
        return self._of(name).read_elements(name, start, stop, memory)

    def _of(self, name: str) -> TensorFile:
        try:
            return self._file_of[name]
        except KeyError as error:
            msg = f"no file holds tensor {name!r}"
            raise FileUnreadableError(msg) from error
