"""Files that are there whole or not at all."""

import errno
import os

import pytest

from gramfuse_shared.creating import create_once, replace_file


def full(_):
    raise OSError(errno.ENOSPC, "no space left on device")


def test_a_file_is_replaced_whole_with_the_mode_that_was_told(tmp_path):
    path = tmp_path / "key"
    replace_file(path, b"old")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"old", 0o600)
    replace_file(path, b"new", mode=0o644)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def replace(path):
    replace_file(path, b"new")


def create(path):
    create_once(path, lambda: b"new")


@pytest.mark.parametrize(("write", "before"), [(replace, None), (replace, b"old"), (create, None)])
def test_a_full_disk_leaves_what_was_there_and_nothing_beside(tmp_path, monkeypatch, write, before):
    path = tmp_path / "key"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write(path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if before is None else [before])
