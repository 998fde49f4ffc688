"""What the server asks of a blob store, asked of a folder and of a real S3 store alike."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest

from gramfuse_server import blobs as storing
from gramfuse_server.blobs import Blobs, open_blobs
from gramfuse_shared.limits import MIB
from support.s3 import BUCKET


@pytest.fixture(params=["folder", "s3"])
def blobs(request, tmp_path, monkeypatch) -> Blobs:
    if request.param == "folder":
        return open_blobs((tmp_path / "blobs").as_uri())
    for name, value in request.getfixturevalue("store").variables.items():
        monkeypatch.setenv(name, value)
    return open_blobs(f"s3://{BUCKET}/{tmp_path.name}")


def test_what_lies_at_a_key_is_never_overwritten_whoever_comes_at_once(blobs):
    with ThreadPoolExecutor(4) as threads:
        news = list(threads.map(lambda number: blobs.put("sha256/a", bytes([number]) * 100_000), range(4)))
    assert news.count(True) == 1
    assert blobs.read("sha256/a", 99_999, 100_000) == bytes([news.index(True)])
    assert blobs.put("sha256/a", b"other") is False
    assert blobs.size("sha256/a") == 100_000


def test_a_large_file_is_put_in_pieces_and_is_the_same(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "WHOLE_BYTES", MIB)
    file = tmp_path / "large"
    file.write_bytes(hashlib.shake_256(b"large").digest(40 * MIB + 7))  # three pieces
    assert blobs.put_file("sha256/large", file) is True
    assert blobs.put_file("sha256/large", file) is False
    assert b"".join(blobs.chunks("sha256/large")) == file.read_bytes()
    assert list(blobs.sizes("sha256/")) == [("sha256/large", 40 * MIB + 7)]


@pytest.mark.parametrize("size", [100_000, 6 * MIB + 7])
def test_a_complete_file_that_was_changed_or_cut_is_replaced_and_a_whole_one_is_not(blobs, size, tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "WHOLE_BYTES", MIB)  # so that the larger one travels in pieces
    monkeypatch.setattr(storing, "PIECE_BYTES", 5 * MIB)
    right = hashlib.shake_256(b"complete").digest(size)
    file, sha256 = tmp_path / "file", hashlib.sha256(right).hexdigest()
    file.write_bytes(right)
    key = storing.blob_key(sha256)
    assert blobs.put_complete(sha256, file) is False
    for wrong in (right[:50_000] + b"rust" + right[50_004:], right[:100], b""):
        obstore.put(blobs.store, key, wrong)
        assert blobs.put_complete(sha256, file) is True
        assert b"".join(blobs.chunks(key)) == right
    written = obstore.head(blobs.store, key)
    assert blobs.put_complete(sha256, right) is False
    assert obstore.head(blobs.store, key) == written
    assert list(blobs.sizes("")) == [(key, size)]  # nothing is left beside it


def test_keys_are_listed_by_prefix_beyond_one_page_and_deleted(blobs):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: blobs.put(f"uploads/u/f/{number}.ab", b"x"), range(1001)))
    blobs.put("uploads/v/f/0.ab", b"y")
    assert blobs.delete_prefix("uploads/u/") == 1001
    blobs.delete("uploads/u/f/0.ab")  # which is gone already
    assert list(blobs.keys("uploads/")) == ["uploads/v/f/0.ab"]
    assert blobs.size("uploads/u/f/0.ab") is None
    with pytest.raises(FileNotFoundError):
        blobs.read("uploads/u/f/0.ab", 0, 1)
