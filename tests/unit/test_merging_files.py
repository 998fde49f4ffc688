"""Reading tensors singly from byte ranges, and writing a file that is complete or not there."""

import errno
import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.errors import FileUnreadableError, FileUnwritableError, HeaderMalformedError, HeaderTooLargeError
from gramfuse_shared.merging import schedule, streaming, write_behind, writing
from gramfuse_shared.merging.schedule import element_ranges
from gramfuse_shared.merging.streaming import LocalFile, TensorFile, TensorFiles
from gramfuse_shared.merging.writing import ShardWriter
from support.merging_cases import Memory

EVERY_DTYPE = {
    f"tensor.{index}": torch.arange(6).reshape(2, 3).to(dtype)
    for index, dtype in enumerate(streaming.TORCH_DTYPES.values())
}


def info(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorInfo:
    return TensorInfo.model_validate({"name": name, "dtype": dtype, "shape": shape})


def test_every_dtype_is_read_as_the_reference_library_reads_it(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(EVERY_DTYPE, path)
    with LocalFile(path) as source:
        from_disk, from_store = TensorFile.open(source), TensorFile.open(Memory(path.read_bytes()))
        for name, expected in EVERY_DTYPE.items():
            for file in (from_disk, from_store):
                found = file.read(name)
                assert found.dtype == expected.dtype
                assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
                part = file.read_elements(name, 1, 3)
                assert torch.equal(part.view(torch.uint8), expected.reshape(-1)[1:3].view(torch.uint8))


@pytest.mark.parametrize("parallel", [1, 8])
def test_a_large_tensor_is_read_in_pieces_from_any_source(tmp_path, parallel):
    path = tmp_path / "model.safetensors"
    large = torch.arange(3 * streaming.SEGMENT_BYTES // 4 + 5, dtype=torch.int32).float()
    save_file({"large": large}, path)
    source = Memory(path.read_bytes(), parallel=parallel)
    assert torch.equal(TensorFile.open(source).read("large"), large)
    assert source.largest_read == streaming.SEGMENT_BYTES


def test_what_is_written_is_what_the_reference_library_reads(tmp_path):
    tensors = {"b": torch.randn(3, 4), "empty": torch.empty(0, 5), "a": torch.tensor(2.5), "é": torch.arange(3.0)}
    path = tmp_path / "model.safetensors"
    layout = [info(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with ShardWriter(path, layout, {"format": "pt"}) as shard:
        for name, tensor in tensors.items():
            shard.write(name, tensor)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert shard.entry.bytes == path.stat().st_size
    assert shard.entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with LocalFile(path) as source:
        assert list(TensorFile.open(source).tensors) == list(tensors)  # in the order in which they were written


def test_a_tensor_may_be_written_in_pieces_and_transposed(tmp_path):
    matrix = torch.randn(5, 3)
    with ShardWriter(tmp_path / "x.safetensors", [info("m", (3, 5)), info("v", (15,))]) as shard:
        shard.write("m", matrix.T)
        for start, stop in ((0, 4), (4, 15)):
            shard.write("v", matrix.reshape(-1)[start:stop])
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["m"], matrix.T)
    assert torch.equal(found["v"], matrix.reshape(-1))


@pytest.mark.parametrize(
    ("name", "elements", "complaint"),
    [
        ("b", torch.zeros(2), "where .*'a'.* is next"),
        ("a", torch.zeros(2, dtype=torch.float64), "float64"),
        ("a", torch.zeros(5), "4 elements; 5 were given"),
        ("a", torch.zeros(3), "not written completely"),
    ],
)
def test_a_file_that_is_not_what_its_header_says_never_appears(tmp_path, name, elements, complaint):
    layout = [info("a", (4,)), info("b", (2,))]
    shard = ShardWriter(tmp_path / "x.safetensors", layout)
    with pytest.raises(ValueError, match=complaint), shard:
        shard.write(name, elements)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="not finished"):
        _ = shard.entry


def test_nothing_appears_before_the_last_byte_and_nothing_stays_after_an_interruption(tmp_path):
    path = tmp_path / "x.safetensors"

    def interrupted() -> None:
        with ShardWriter(path, [info("a", (4,))]) as shard:
            shard.write("a", torch.zeros(2))
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_there_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="not written completely"), ShardWriter(path, [info("a", (4,))]):
        pass
    assert path.read_bytes() == b"old"


class FullDisk:
    """Delegates to a real file until its budget is used up, then answers as a full disk does."""

    def __init__(self, path: Path, budget: int) -> None:
        self._file, self._budget = path.open("wb", buffering=0), budget

    def write(self, content: memoryview) -> int:
        self._budget -= len(content)
        if self._budget < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content)

    def close(self) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()


@pytest.mark.parametrize("budget", [0, 100, 300])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, monkeypatch, budget):
    monkeypatch.setattr(writing, "open_for_writing", lambda path: FullDisk(path, budget))
    with (
        pytest.raises(FileUnwritableError, match=r"no space left for .*x\.safetensors, which takes 400 bytes"),
        ShardWriter(tmp_path / "x.safetensors", [info("a", (100,))]) as shard,
    ):
        shard.write("a", torch.zeros(100))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_sync_is_a_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_behind.os, "fsync", fail)
    with pytest.raises(FileUnwritableError), ShardWriter(tmp_path / "x.safetensors", [info("a", (1,))]) as shard:
        shard.write("a", torch.zeros(1))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path):
    target = tmp_path / "nowhere" / "x.safetensors"
    with pytest.raises(FileUnwritableError, match="cannot be written"), ShardWriter(target, [info("a", (1,))]):
        pass


def test_a_missing_file_and_a_missing_tensor_are_clear_errors(tmp_path):
    with pytest.raises(FileUnreadableError, match="No such file"):
        LocalFile(tmp_path / "no.safetensors")
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with LocalFile(path) as source:
        with pytest.raises(FileUnreadableError, match="no tensor 'b'"):
            TensorFile.open(source).read("b")
        with pytest.raises(FileUnreadableError, match="no file holds tensor 'b'"):
            TensorFiles([TensorFile.open(source)]).read("b")


def test_a_file_that_becomes_shorter_while_it_is_read_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    with LocalFile(path) as source:
        file = TensorFile.open(source)
        with path.open("r+b") as stream:
            stream.truncate(200)
        with pytest.raises(FileUnreadableError, match="changed while it was read"):
            file.read("a")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", HeaderMalformedError),
        (b"1234567", HeaderMalformedError),
        (b"\xff" * 8, HeaderTooLargeError),
        (b"\x80\x04\x00\x00\x00\x00\x00\x00 a pickle", HeaderMalformedError),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(content, error):
    with pytest.raises(error):
        TensorFile.open(Memory(content))


def test_shards_are_one_reader_and_may_not_overlap(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "2.safetensors")
    files = [TensorFile.open(Memory((tmp_path / f"{number}.safetensors").read_bytes())) for number in (1, 2)]
    both = TensorFiles(files)
    assert both.tensors.keys() == {"a", "b"}
    assert torch.equal(both.read("b"), torch.ones(2))
    assert torch.equal(both.read_elements("b", 1, 2), torch.ones(1))
    with pytest.raises(HeaderMalformedError, match="two files"):
        TensorFiles([files[0], files[0]])


@pytest.mark.parametrize("count", [0, 1, 5, 2**22, 2**22 + 1, 10**7])
def test_chunks_tile_a_tensor_and_stay_under_their_size(count):
    ranges = list(element_ranges(count, 4))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == count
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert all((stop - start) * 4 <= schedule.CHUNK_BYTES for start, stop in ranges)
