"""The header parser against hostile files; each refusal names what is wrong."""

import json
import struct

import pytest

from gramfuse_shared import limits
from gramfuse_shared.contract.safetensors_header import (
    TensorEntry,
    format_header,
    parse_header,
    parse_header_length,
)
from gramfuse_shared.errors import HeaderMalformedError, HeaderTooLargeError


def header_of(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def parse(document: object, *, rest: int) -> object:
    raw = header_of(json.dumps(document))
    return parse_header(raw, len(raw) + rest)


def entry(start: int, end: int, *, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_a_well_formed_header_gives_tensors_in_file_order_with_offsets_from_the_files_beginning():
    raw = header_of(json.dumps({"b": entry(8, 16), "a": entry(0, 8), "__metadata__": {"format": "pt"}}))
    header = parse_header(raw, len(raw) + 16)
    assert list(header.tensors) == ["a", "b"]
    assert header.tensors["b"] == TensorEntry("b", "F32", (2,), len(raw) + 8, len(raw) + 16)
    assert header.metadata == {"format": "pt"}
    assert (header.header_bytes, header.file_bytes) == (len(raw), len(raw) + 16)


def test_what_is_formatted_parses_to_the_same_tensors_and_is_aligned():
    raw = format_header([("w", "BF16", (3, 5)), ("b", "F32", ()), ("empty", "I64", (0, 7))], {"format": "pt"})
    header = parse_header(raw, len(raw) + 34)
    assert [(t.name, t.dtype, t.shape, t.length) for t in header.tensors.values()] == [
        ("w", "BF16", (3, 5), 30),
        ("b", "F32", (), 4),
        ("empty", "I64", (0, 7), 0),
    ]
    assert len(raw) % 8 == 0


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_file_shorter_than_its_length_field_is_refused(length: int):
    with pytest.raises(HeaderMalformedError, match=f"ends after {length} bytes"):
        parse_header(b"\0" * length, length)


@pytest.mark.parametrize("announced", [limits.MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_an_oversized_length_is_refused_before_anything_is_allocated(announced: int):
    with pytest.raises(HeaderTooLargeError, match=str(announced)):
        parse_header_length(struct.pack("<Q", announced))


def test_a_header_that_reaches_beyond_the_file_is_refused():
    with pytest.raises(HeaderMalformedError, match="the file has 10 bytes"):
        parse_header(struct.pack("<Q", 100) + b"{}", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\x80\x04\x95pickle", "does not start with '{'"),
        (b"[]", "does not start with '{'"),
        (b"{\xff}", "not JSON"),
        (b'{"a":', "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a":' + b"[" * 100_000, "not JSON"),
        (b'{"a": {}, "a": {}}', "'a' twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [], "data_offsets": [0, 4]}}', "'dtype' twice"),
        (b'{"__metadata__": {"a": 1}}', "strings to strings"),
        (b'{"__metadata__": []}', "strings to strings"),
    ],
)
def test_json_that_is_not_a_header_is_refused(text: bytes, message: str):
    raw = header_of(text)
    with pytest.raises(HeaderMalformedError, match=message):
        parse_header(raw, len(raw))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"a": []}, "exactly dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "exactly dtype, shape and data_offsets"),
        ({"a": entry(0, 8) | {"more": 1}}, "exactly dtype, shape and data_offsets"),
        ({"a": entry(0, 8, dtype="object")}, "unknown dtype"),
        ({"a": entry(0, 8) | {"dtype": 3}}, "unknown dtype"),
        ({"a": entry(0, 8, shape=[-2])}, "not a list"),
        ({"a": entry(0, 8, shape=[2.0])}, "not a list"),  # type: ignore[list-item] # hostile on purpose
        ({"a": entry(0, 8, shape=[True, True])}, "not a list"),
        ({"a": entry(0, 8, shape=[1] * 9)}, "at most 8 sizes"),
        ({"a": entry(0, 8) | {"shape": "2"}}, "not a list"),
        ({"a": entry(0, 8) | {"data_offsets": [0]}}, "not a pair"),
        ({"a": entry(0, 8) | {"data_offsets": [-8, 0]}}, "not a pair"),
        ({"a": entry(0, 8) | {"data_offsets": [0, 2**63]}}, "not a pair"),
        ({"a": entry(0, 8, shape=[3])}, "takes 12"),
        ({"a": entry(0, 8, shape=[2**62, 2**62])}, "span 8 bytes"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "span -8 bytes"),
        ({"": entry(0, 8)}, "empty"),
        ({"a\nb": entry(0, 8)}, "not printable"),
        ({"a" * 513: entry(0, 8)}, "too long"),
    ],
)
def test_an_entry_that_lies_about_itself_is_refused_by_name(document: dict[str, object], message: str):
    with pytest.raises(HeaderMalformedError, match=message):
        parse(document, rest=8)


@pytest.mark.parametrize(
    ("document", "rest", "message"),
    [
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "a hole before tensor 'b'"),
        ({"a": entry(4, 8)}, 8, "a hole before tensor 'a'"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "an overlap before tensor 'b'"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "an overlap before tensor 'b'"),
        ({"a": entry(0, 8)}, 9, "the tensors end at byte"),
        ({"a": entry(0, 8)}, 4, "the tensors end at byte"),
        ({}, 1, "the tensors end at byte"),
    ],
)
def test_tensors_that_do_not_tile_the_file_are_refused(document: dict[str, object], rest: int, message: str):
    with pytest.raises(HeaderMalformedError, match=message):
        parse(document, rest=rest)


def test_more_tensors_than_any_model_has_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_TENSORS_PER_FILE", 2)
    with pytest.raises(HeaderTooLargeError, match="names 3 tensors"):
        parse({name: entry(0, 0) for name in "abc"}, rest=0)
