"""Ranges of blobs as the merge engine reads them. Imports torch."""

from dataclasses import dataclass
from typing import Final

import obstore
from obstore.exceptions import BaseError

from gramfuse_server.blobs import Blobs
from gramfuse_shared.errors import FileUnreadableError
from gramfuse_shared.merging.streaming import LOCAL_READS

_REMOTE_READS: Final = 8
"""Ranges of an object store asked for at once: each waits for the network, none for a core."""


@dataclass(frozen=True, slots=True)
class BlobSource:
    """A blob as the engine's `ByteSource`."""

    blobs: Blobs
    key: str
    size: int

    @property
    def parallel(self) -> int:
        """Reads that are worth having on their way at once."""
        return LOCAL_READS if self.blobs.is_local else _REMOTE_READS

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on.

        Raises:
            FileUnreadableError: the blob is gone, or the store does not answer, or with other bytes.
        """
        try:
            end = start + len(target)
            content = memoryview(obstore.get_range(self.blobs.store, self.key, start=start, end=end))
        except (BaseError, OSError) as error:
            msg = f"{self.key} cannot be read: {str(error).partition(chr(10))[0]}"
            raise FileUnreadableError(msg) from error
        if len(content) != len(target):
            msg = f"{self.key}: {len(content)} bytes came of {len(target)}"
            raise FileUnreadableError(msg)
        target[:] = content
