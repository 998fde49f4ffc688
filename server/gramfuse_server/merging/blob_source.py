"""Ranges of blobs as the merge engine reads them. Imports torch."""

from dataclasses import dataclass
from typing import Final

import obstore
import structlog
from obstore.exceptions import BaseError

from gramfuse_server.blobs import Blobs
from gramfuse_shared.errors import FileUnreadableError
from gramfuse_shared.merging.streaming import LOCAL_READS

_log = structlog.get_logger(__name__)

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
            # where the store lies is its operator's to know; the message is told to the project's members
            _log.warning("blob not read", key=self.key, reason=str(error).partition("\n")[0])
            why = (
                "is not in the blob store"
                if isinstance(error, FileNotFoundError)
                else "cannot be read from the blob store"
            )
            msg = f"{self.key} {why}; the worker's log has the details"
            raise FileUnreadableError(msg) from error
        if len(content) != len(target):
            msg = f"{self.key}: {len(content)} bytes came of {len(target)}"
            raise FileUnreadableError(msg)
        target[:] = content
