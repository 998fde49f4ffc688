"""Write and hash behind whoever computes: while one piece is made, an earlier one is written and its forerunner hashed.

Slots of memory take turns. What is written is handed to the disk as it grows, so that the end need not wait for it.
"""

import hashlib
import os
import threading
from collections.abc import Callable
from io import RawIOBase
from queue import SimpleQueue
from typing import Final

import torch

from gramfuse_shared.limits import MIB
from gramfuse_shared.merging.read_ahead import HostMemory

PIECE_BYTES: Final = 16 * MIB
SYNC_BYTES: Final = 256 * MIB
_SLOTS: Final = 3
"""One is filled, one written, one hashed."""
_CUDA_SLOTS: Final = 16
"""A device solves a group in less time than its weights take to be hashed, so more of them wait."""


class WriteBehind:
    """Appends to an open file from a thread of its own, and hashes what was written in another."""

    def __init__(self, file: RawIOBase) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._error: BaseException | None = None
        self._slots: list[HostMemory] = []
        self._free: SimpleQueue[HostMemory | None] = SimpleQueue()
        self._filled: SimpleQueue[tuple[memoryview, HostMemory | None] | None] = SimpleQueue()
        self._written: SimpleQueue[tuple[memoryview, HostMemory | None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"gramfuse-{name}-behind", daemon=True)
            for name, work in (("write", self._write), ("hash", self._hash))
        ]
        for thread in self._threads:
            thread.start()
        self.length = 0

    def append(self, elements: torch.Tensor) -> None:
        """Append a tensor's bytes, on any device; it may be overwritten when this returns.

        Raises:
            OSError: what writing an earlier piece met.
        """
        content = elements.detach().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, content.numel(), PIECE_BYTES):
            piece = content[start : start + PIECE_BYTES]
            slot = self._take_slot(pinned=piece.is_cuda)
            memory = slot.take(piece.numel())
            memory.copy_(piece)
            self._put(memory.numpy().data, slot)

    def append_bytes(self, content: bytes) -> None:
        """Append bytes. Raises as `append` does."""
        self._put(memoryview(content), None)

    def finish(self) -> str:
        """Wait until everything is written and on the disk; return the SHA-256 of all, in hexadecimal.

        Raises:
            OSError: what writing met.
        """
        self.stop()
        self._raise()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def stop(self) -> None:
        """End the threads; what was appended before is written, unless that failed already."""
        self._filled.put(None)
        for thread in self._threads:
            thread.join()

    def _take_slot(self, *, pinned: bool) -> HostMemory:
        if len(self._slots) < (_CUDA_SLOTS if pinned else _SLOTS):
            self._slots.append(HostMemory(pinned=pinned))
            return self._slots[-1]
        slot = self._free.get()
        if slot is None:
            self._raise()
            msg = "the writing thread has ended"
            raise OSError(msg)
        return slot

    def _put(self, content: memoryview, slot: HostMemory | None) -> None:
        self._raise()
        self.length += len(content)
        self._filled.put((content, slot))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again to whoever appends
            self._error = error
            self._free.put(None)

    def _write(self) -> None:
        unsynced = 0
        try:
            while (found := self._filled.get()) is not None:
                rest, _ = found
                unsynced += len(rest)
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
                self._written.put(found)
                if unsynced >= SYNC_BYTES:
                    os.fdatasync(self._file.fileno())
                    unsynced = 0
        finally:
            self._written.put(None)

    def _hash(self) -> None:
        while (found := self._written.get()) is not None:
            content, slot = found
            self._digest.update(content)
            if slot is not None:
                self._free.put(slot)
