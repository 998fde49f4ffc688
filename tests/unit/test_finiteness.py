"""NaN and infinity are seen in bytes as they are read for a digest: of any float, wherever chunks end."""

import struct
from pathlib import Path

import pytest
import torch

from gramfuse.auditing.subject import subject_of
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import draft_contribution
from gramfuse.contributing.finiteness import FiniteStream, is_finite
from gramfuse.contributing.loading import open_statistics_file, read_header
from gramfuse.contributing.packaging import build_package, leaving_files
from gramfuse_shared.contract.faults import weights_fault
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import TensorEntry
from gramfuse_shared.errors import GramfuseError, StatisticsInvalidError, WeightsInvalidError
from gramfuse_shared.merging.inspection import inspect_statistics, inspect_weights
from gramfuse_shared.merging.streaming import TORCH_DTYPES, LocalFile, TensorFile
from support import client_models as models

FLOATS = ("F16", "BF16", "F32", "F64", "F8_E5M2", "F8_E4M3")
OF_EVERY_BYTE = bytes(range(256))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_value_of_any_bits_is_finite_where_torch_says_so(dtype):
    size = torch.empty(0, dtype=TORCH_DTYPES[dtype]).element_size()
    lower = (0x00, 0x01, 0x7F, 0x80, 0xEF, 0xF0, 0xFF)
    below = [bytes([0x3C] * (size - 2) + [low]) for low in lower] if size > 1 else [b""]
    for value in (rest + bytes([top]) for rest in below for top in range(256)):
        expected = torch.frombuffer(bytearray(value), dtype=TORCH_DTYPES[dtype]).float().isfinite().item()
        if size == 8:  # what float32 holds as infinite may be finite
            expected = torch.frombuffer(bytearray(value), dtype=torch.float64).isfinite().item()
        assert is_finite(bytes(size) + value + bytes(size), dtype) == expected, value.hex()


@pytest.mark.parametrize("dtype", ["I16", "I64", "U8", "BOOL"])
def test_whole_numbers_are_of_no_interest(dtype):
    stream = FiniteStream([TensorEntry("ids", dtype, (256,), 0, 256)], weights_fault)
    stream.see(OF_EVERY_BYTE)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 16, 1000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_is_seen_wherever_chunks_end_and_only_in_the_tensors_that_count(chunk, bad):
    values = [1.0, 3.4e38, -3.4e38, bad]
    other, counted = b"x" + struct.pack("<4f", *values), struct.pack("<4f", *values)

    def see(*entries: TensorEntry) -> str | None:
        stream, content = FiniteStream(entries, weights_fault), b"head" + other + counted
        try:
            for start in range(0, len(content), chunk):
                stream.see(content[start : start + chunk])
        except WeightsInvalidError as error:
            return str(error.facts["tensor"])
        return None

    at = 4 + len(other)
    first, rest = TensorEntry("first", "F32", (3,), at, at + 12), TensorEntry("rest", "F32", (1,), at + 12, at + 16)
    assert see() is None
    assert see(first) is None
    assert see(rest, first) == "rest"
    assert see(TensorEntry("whole", "F32", (4,), at, at + 16)) == "whole"
    assert see(TensorEntry("empty", "F32", (0,), at, at)) is None


# --- of a contribution -----------------------------------------------------------------------------------------------

POLICY = Policy(minimum_rows_per_dimension=0, embedding_taps="send")


def errors_of(model: Path, statistics: Path, base_folder: Path) -> list[GramfuseError]:
    """Return what an audit, and the package of a push, raise of a contribution: one of each, or nothing."""
    base = build_base_manifest(base_folder)
    draft = draft_contribution(model, statistics, base, POLICY, base_folder=base_folder)
    opened = draft.statistics
    assert opened is not None

    def package() -> object:
        return build_package(
            draft.plan,
            leaving_files(draft.plan, draft.model, opened),
            encoding=draft.model.encoding,
            measured=opened.metadata,
            project="acme.tweets",
            organization="globex",
            base=base,
            policy=POLICY,
            policy_version=1,
        )

    found = []
    for read in (lambda: subject_of(draft, base, POLICY, base_folder), package):
        try:
            read()
        except GramfuseError as error:
            found.append(error)
    return found


@pytest.fixture
def contribution(tmp_path):
    model = models.write_model(tmp_path / "tuned", 1, shards=2)
    return model, models.write_statistics(tmp_path / "s.safetensors"), models.write_model(tmp_path / "base")


def poison(path: Path, tensor: str, value: bytes) -> None:
    """Put a value at the end of a tensor."""
    entry, content = read_header(path).tensors[tensor], bytearray(path.read_bytes())
    content[entry.end - len(value) : entry.end] = value
    path.write_bytes(content)


def told(errors: list[GramfuseError]) -> set[tuple[type[GramfuseError], str]]:
    assert len(errors) in {0, 2}  # the audit's and the package's
    return {(type(error), error.message) for error in errors}


def test_what_is_finite_passes(contribution):
    assert errors_of(*contribution) == []


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("encoder.layer.0.dense.bias", struct.pack("<f", float("nan"))),
        ("encoder.layer.1.dense.weight", struct.pack("<f", float("inf"))[2:]),
        ("encoder.layer.1.norm.weight", struct.pack("<e", float("-inf"))),
    ],
)
def test_a_weight_that_is_not_finite_is_refused_before_it_leaves_in_the_words_of_the_server(
    contribution, tensor, value
):
    model, *_ = contribution
    (shard,) = [path for path in model.glob("*.safetensors") if tensor in read_header(path).tensors]
    poison(shard, tensor, value)
    with LocalFile(shard) as file, pytest.raises(WeightsInvalidError) as refused:
        inspect_weights(TensorFile.open(file))
    assert told(errors_of(*contribution)) == {(WeightsInvalidError, refused.value.message)}
    assert tensor in refused.value.message


def test_a_matrix_that_is_not_finite_is_refused_before_it_leaves_in_the_words_of_the_server(contribution):
    _, statistics, _ = contribution
    poison(statistics, "gram.encoder.layer.0.dense", struct.pack("<f", float("nan")))
    with LocalFile(statistics) as file, pytest.raises(StatisticsInvalidError) as refused:
        inspect_statistics(TensorFile.open(file), open_statistics_file(statistics).metadata)
    assert told(errors_of(*contribution)) == {(StatisticsInvalidError, refused.value.message)}


def test_what_stays_at_home_may_be_anything(contribution):
    model, statistics, _ = contribution
    for path in model.glob("*.safetensors"):
        for kept in ("encoder.embeddings.word_embeddings.weight", "classifier.weight"):
            if kept in read_header(path).tensors:
                poison(path, kept, struct.pack("<f", float("nan")))
    poison(statistics, "gram.classifier", struct.pack("<f", float("nan")))
    assert errors_of(*contribution) == []
