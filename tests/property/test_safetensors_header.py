"""The header parser agrees with the reference library on good files, and fails only by its own errors."""

import json
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as reference_load
from safetensors.numpy import save as reference_save

from gramfuse_shared.contract.safetensors_header import parse_header
from gramfuse_shared.errors import HeaderMalformedError, HeaderTooLargeError

names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20).filter(str.isprintable)
arrays = st.builds(
    np.ones,
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]),
)


@given(st.dictionaries(names.filter(lambda name: name != "__metadata__"), arrays, max_size=5))
def test_files_of_the_reference_library_parse_to_the_tensors_that_were_saved(tensors: dict[str, np.ndarray]):
    raw = reference_save(tensors)
    header = parse_header(raw, len(raw))
    assert {name: entry.shape for name, entry in header.tensors.items()} == {n: a.shape for n, a in tensors.items()}
    for name, entry in header.tensors.items():
        assert raw[entry.start : entry.end] == tensors[name].tobytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=10,
)
lying_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I8", "F8_E4M3", "PICKLE"]) | json_values,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | json_values,
    }
)


@given(
    document=st.dictionaries(st.text(max_size=3), lying_entries | json_values, max_size=4),
    rest=st.binary(max_size=40),
    shift=st.integers(-3, 3) | st.just(0),
)
def test_any_document_parses_to_tensors_that_tile_the_file_or_is_refused(document: dict, rest: bytes, shift: int):
    text = json.dumps(document).encode()
    raw = struct.pack("<Q", max(0, len(text) + shift)) + text + rest
    try:
        header = parse_header(raw, len(raw))
    except (HeaderMalformedError, HeaderTooLargeError):
        return
    position = header.header_bytes
    for entry in header.tensors.values():
        assert (entry.start, entry.end <= len(raw)) == (position, True)
        position = entry.end
    assert position == len(raw)
    assert reference_load(raw).keys() == header.tensors.keys()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_parse(raw: bytes):
    try:
        parse_header(raw, len(raw))
    except (HeaderMalformedError, HeaderTooLargeError):
        return
    assert raw.startswith(struct.pack("<Q", len(raw) - 8)[:1])
