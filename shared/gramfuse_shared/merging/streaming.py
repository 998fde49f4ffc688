"""Read tensors singly from anywhere that gives byte ranges."""

import threading
from collections.abc import Iterable, Iterator, Mapping
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

CHUNK_BYTES: Final = 16 * 2**20
"""Bytes of one read where a tensor need not be whole; bounds the memory that embeddings take."""


class ByteSource(Protocol):
    """A file's bytes, wherever they lie. May be read from several threads."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, start: int, end: int) -> bytes | bytearray | memoryview:
        """Return the bytes [start, end), all of them.

        Raises:
            FileUnreadableError: they cannot be had.
        """
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

    def read_elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor, in its stored dtype, on the CPU."""
        ...


class LocalFile:
    """A file on disk as a `ByteSource`; open until closed."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            FileUnreadableError: it is missing or may not be read.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = path.open("rb", buffering=0)
            self._size = self._file.seek(0, 2)
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise FileUnreadableError(msg) from error

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._size

    def read(self, start: int, end: int) -> bytearray:
        """Return the bytes [start, end).

        Raises:
            FileUnreadableError: the file became shorter, or the disk fails.
        """
        content = bytearray(end - start)
        view = memoryview(content)
        try:
            with self._lock:
                self._file.seek(start)
                while view:
                    count = self._file.readinto(view)
                    if not count:
                        break
                    view = view[count:]
        except OSError as error:
            msg = f"{self._path} cannot be read: {error.strerror}"
            raise FileUnreadableError(msg) from error
        if view:
            msg = f"{self._path} ends before byte {end}; it changed while it was read"
            raise FileUnreadableError(msg)
        return content

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
        prefix = bytes(source.read(0, LENGTH_BYTES))
        begin = LENGTH_BYTES + parse_header_length(prefix)
        rest = bytes(source.read(LENGTH_BYTES, min(begin, source.size)))
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
        return self._decode(entry, entry.start, entry.end).reshape(entry.shape)

    def read_elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor, in its stored dtype, on the CPU.

        Raises:
            FileUnreadableError: there is no such tensor, or its bytes cannot be had.
        """
        entry = self._entry(name)
        size = DTYPE_BYTES[entry.dtype]
        return self._decode(entry, entry.start + start * size, min(entry.start + stop * size, entry.end))

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.header.tensors[name]
        except KeyError as error:
            msg = f"the file holds no tensor {name!r}"
            raise FileUnreadableError(msg) from error

    def _decode(self, entry: TensorEntry, start: int, end: int) -> torch.Tensor:
        dtype = TORCH_DTYPES[entry.dtype]
        if start >= end:
            return torch.empty(0, dtype=dtype)
        content = self._source.read(start, end)
        if len(content) != end - start:
            msg = f"tensor {entry.name!r}: {len(content)} bytes came of {end - start}"
            raise FileUnreadableError(msg)
        # torch warns about memory that it may not write to
        writable = content if isinstance(content, bytearray) else bytearray(content)
        return torch.frombuffer(writable, dtype=dtype)


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

    def read_elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return some elements of one tensor, as `TensorFile.read_elements` does."""
        return self._of(name).read_elements(name, start, stop)

    def _of(self, name: str) -> TensorFile:
        try:
            return self._file_of[name]
        except KeyError as error:
            msg = f"no file holds tensor {name!r}"
            raise FileUnreadableError(msg) from error


def element_ranges(count: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut `count` elements into ranges of at most `CHUNK_BYTES`; no elements give one empty range."""
    step = max(CHUNK_BYTES // item_bytes, 1)
    for start in range(0, max(count, 1), step):
        yield start, min(start + step, count)
