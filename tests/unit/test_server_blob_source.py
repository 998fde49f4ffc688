"""A blob that cannot be read: members are told which, and not where the store lies."""

import pytest

from gramfuse_server.blobs import open_blobs
from gramfuse_server.merging.blob_source import BlobSource
from gramfuse_shared.errors import FileUnreadableError


@pytest.mark.parametrize(
    ("content", "told"), [(None, "a/b is not in the blob store"), (b"four", "a/b cannot be read from the blob store")]
)
def test_a_blob_that_is_gone_or_too_short_is_named_without_the_stores_address(tmp_path, content, told):
    blobs = open_blobs(tmp_path.as_uri())
    if content is not None:
        blobs.put("a/b", content)
    with pytest.raises(FileUnreadableError, match=told) as caught:
        BlobSource(blobs, "a/b", 16).read_into(8, memoryview(bytearray(8)))
    assert str(tmp_path) not in caught.value.message


def test_the_bytes_asked_for_are_read(tmp_path):
    blobs = open_blobs(tmp_path.as_uri())
    blobs.put("a/b", b"0123456789")
    target = bytearray(4)
    BlobSource(blobs, "a/b", 10).read_into(3, memoryview(target))
    assert target == b"3456"
