"""Parse the header of a safetensors file that nobody trusts.

The reference library accepts duplicate keys, so the header is parsed here. The format: eight bytes, little-endian,
give the header's length N; N bytes of JSON follow, an object from tensor name to dtype, shape and offsets into the
rest of the file, and optionally `__metadata__`, a map from string to string. Tensors must tile the rest of the file
without holes or overlaps.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Never

from gramfuse_shared import limits
from gramfuse_shared.errors import HeaderMalformedError, HeaderTooLargeError

LENGTH_BYTES: Final = 8
METADATA_KEY: Final = "__metadata__"

DTYPE_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E5M2": 1,
        "F8_E4M3": 1,
        "I16": 2,
        "U16": 2,
        "F16": 2,
        "BF16": 2,
        "I32": 4,
        "U32": 4,
        "F32": 4,
        "I64": 8,
        "U64": 8,
        "F64": 8,
    }
)
FLOAT_DTYPES: Final = frozenset({"F16", "BF16", "F32", "F64"})
"""The dtypes that are merged; tensors of any other are taken from the base."""


TensorLayout = tuple[str, str, tuple[int, ...]]
"""Name, dtype, shape."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; `start` and `end` are bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: tensors by name in file order, metadata, and the file's sizes in bytes."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    header_bytes: int = LENGTH_BYTES
    file_bytes: int = LENGTH_BYTES


def odd_tensors(header: Header, expected: Sequence[TensorLayout], described: str) -> str | None:
    """Say how the tensors of a file are others than those expected; None where they are the same, in the same order.

    `described` ends the sentence where all are the same but some are missing or spare.
    """
    found = [(entry.name, entry.dtype, entry.shape) for entry in header.tensors.values()]
    if found == list(expected):
        return None
    odd = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), None)
    return f"found {odd[0]}, expected {odd[1]}" if odd else f"{len(found)} tensors {described}"


def parse_header_length(prefix: bytes) -> int:
    """Return the number of bytes of JSON after the first eight.

    Raises:
        HeaderMalformedError: fewer than eight bytes.
        HeaderTooLargeError: more than `limits.MAX_HEADER_BYTES` announced.
    """
    if len(prefix) < LENGTH_BYTES:
        msg = f"the file ends after {len(prefix)} bytes; a safetensors file has at least {LENGTH_BYTES}"
        raise HeaderMalformedError(msg)
    (length,) = struct.unpack_from("<Q", prefix)
    if length > limits.MAX_HEADER_BYTES:
        msg = (
            f"this is not a safetensors file, or a damaged one: its header would be {length} bytes of JSON, at most "
            f"{limits.MAX_HEADER_BYTES} are read"
        )
        raise HeaderTooLargeError(msg)
    return int(length)


def parse_header(raw: bytes, file_bytes: int) -> Header:
    """Parse `raw`, which holds at least the length field and the whole JSON, of a file of `file_bytes` bytes.

    Checked in this order:
      1. length field within bounds and within the file,
      2. UTF-8 JSON object, no duplicate keys, no NaN,
      3. each entry has exactly dtype, shape and offsets, of known form and within limits,
      4. offsets agree with shape × dtype,
      5. tensors tile the rest of the file: no hole, no overlap, nothing behind.

    Raises:
        HeaderMalformedError: any of the above, with what and where.
        HeaderTooLargeError: header over its limit, or too many tensors.
    """
    # 1.
    length = parse_header_length(raw)
    begin = LENGTH_BYTES + length
    if begin > file_bytes or len(raw) < begin:
        msg = f"the header announces {length} bytes of JSON, the file has {file_bytes} bytes in all"
        raise HeaderMalformedError(msg)
    # 2.
    entries = _parse_json_object(raw[LENGTH_BYTES:begin])
    metadata = _parse_metadata(entries.pop(METADATA_KEY, {}))
    if len(entries) > limits.MAX_TENSORS_PER_FILE:
        msg = f"the header names {len(entries)} tensors; at most {limits.MAX_TENSORS_PER_FILE} are read"
        raise HeaderTooLargeError(msg)
    # 3. and 4.
    tensors = sorted(
        (_parse_entry(name, entry, begin) for name, entry in entries.items()), key=lambda t: (t.start, t.end)
    )
    # 5.
    position = begin
    for tensor in tensors:
        if tensor.start != position:
            kind = "a hole" if tensor.start > position else "an overlap"
            msg = f"{kind} before tensor {tensor.name!r}: it starts at byte {tensor.start}, expected {position}"
            raise HeaderMalformedError(msg)
        position = tensor.end
    if position != file_bytes:
        msg = f"the tensors end at byte {position}, the file at {file_bytes}"
        raise HeaderMalformedError(msg)
    return Header(
        tensors=MappingProxyType({tensor.name: tensor for tensor in tensors}),
        metadata=MappingProxyType(metadata),
        header_bytes=begin,
        file_bytes=file_bytes,
    )


def format_header(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write the length field and JSON for tensors (name, dtype, shape) laid out in the given order.

    The JSON is padded with spaces to a multiple of eight bytes, as the reference library does, so that the data is
    aligned for memory mapping.
    """
    document: dict[str, Any] = {}
    if metadata:
        document[METADATA_KEY] = dict(metadata)
    offset = 0
    for name, dtype, shape in tensors:
        length = math.prod(shape) * DTYPE_BYTES[dtype]
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse_json_object(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        msg = "the header does not start with '{'"
        raise HeaderMalformedError(msg)
    try:
        document = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        msg = f"the header is not JSON: {error}"
        raise HeaderMalformedError(msg) from error
    if not isinstance(document, dict):  # pragma: no cover - '{' makes it an object
        msg = "the header is not a JSON object"
        raise HeaderMalformedError(msg)
    return document


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"the header holds the key {twice!r} twice"
        raise HeaderMalformedError(msg)
    return document


def _refuse_constant(constant: str) -> Never:
    msg = f"the header holds {constant}, which is not JSON"
    raise HeaderMalformedError(msg)


def _parse_metadata(metadata: Any) -> dict[str, str]:  # noqa: ANN401 - it was just parsed from JSON
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        msg = f"{METADATA_KEY} must map strings to strings"
        raise HeaderMalformedError(msg)
    return metadata


def _is_count(value: Any) -> bool:  # noqa: ANN401 - it was just parsed from JSON
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _parse_entry(name: str, entry: Any, begin: int) -> TensorEntry:  # noqa: ANN401 - it was just parsed from JSON
    where = f"tensor {name[:80]!r}"
    if not 0 < len(name) <= limits.MAX_TENSOR_NAME_CHARACTERS or not name.isprintable():
        msg = f"{where}: the name is empty, too long or not printable"
        raise HeaderMalformedError(msg)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        msg = f"{where}: an entry holds exactly dtype, shape and data_offsets"
        raise HeaderMalformedError(msg)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        msg = f"{where}: unknown dtype {str(dtype)[:40]!r}"
        raise HeaderMalformedError(msg)
    if not isinstance(shape, list) or len(shape) > limits.MAX_TENSOR_DIMENSIONS or not all(map(_is_count, shape)):
        msg = f"{where}: the shape is not a list of at most {limits.MAX_TENSOR_DIMENSIONS} sizes"
        raise HeaderMalformedError(msg)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):  # noqa: PLR2004 - a pair
        msg = f"{where}: data_offsets is not a pair of byte positions"
        raise HeaderMalformedError(msg)
    start, end = offsets
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - start != expected:
        msg = f"{where}: offsets span {end - start} bytes, {dtype} of shape {shape} takes {expected}"
        raise HeaderMalformedError(msg)
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), start=begin + start, end=begin + end)
