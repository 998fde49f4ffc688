"""Read a known sequence of tensors ahead of who asks for them: one is being read while another is being used.

Two slots of memory take turns, each as large as the largest read, so that no page is touched for the first time twice
and memory does not depend on how much is read. For CUDA the slots' host memory is pinned and the copies run on a
stream of their own; the computing stream waits for them, the program never does.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import torch

R = TypeVar("R")

SLOTS: Final = 2

Fetch = Callable[[R, "HostMemory"], torch.Tensor]
"""Carries out a read into memory and returns the tensor there."""


class HostMemory:
    """Memory of the CPU that grows to the largest size asked of it."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> torch.Tensor:
        """Return `size` bytes with undefined content, uint8; what was taken before is overwritten."""
        if self._bytes.numel() < size:
            self._bytes = torch.empty(0, dtype=torch.uint8)  # freed before the larger one is allocated
            self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._bytes[:size]


class ReadAhead(Generic[R]):
    """`with ReadAhead(reads, fetch, device) as ahead: tensor = ahead.next(read)`, in the order of `reads`."""

    def __init__(self, reads: Iterable[R], fetch: Fetch[R], device: torch.device) -> None:
        """Take what will be read; the reading begins with the `with` statement."""
        slot = _CudaSlot if device.type == "cuda" else _Slot
        self._slots = [slot(device) for _ in range(SLOTS)]
        self._reads: Iterator[R] = iter(reads)
        self._fetch = fetch
        self._free: SimpleQueue[_Slot | None] = SimpleQueue()
        self._filled: SimpleQueue[tuple[R, _Slot] | BaseException | None] = SimpleQueue()
        self._used: _Slot | None = None
        self._thread = threading.Thread(target=self._run, name="gramfuse-read-ahead", daemon=True)

    def next(self, read: R) -> torch.Tensor:
        """Return what this read, which must be the next of the sequence, gave; valid until the next call.

        Raises:
            ValueError: another read is next.
            BaseException: whatever `fetch` raised for this read.
        """
        if self._used is not None:
            self._used.release()
            self._free.put(self._used)
            self._used = None
        found = self._filled.get()
        if isinstance(found, BaseException):
            self._filled.put(found)  # for whoever asks again
            raise found
        if found is None or found[0] != read:
            msg = f"asked for {read} where {found[0] if found else 'nothing'} is next"
            raise ValueError(msg)
        self._used = found[1]
        return self._used.ready()

    def _run(self) -> None:
        try:
            for read in self._reads:
                slot = self._free.get()
                if slot is None:
                    return
                slot.fill(read, self._fetch)
                self._filled.put((read, slot))
        except BaseException as error:  # noqa: BLE001 - raised again where the read was asked for
            self._filled.put(error)
        else:
            self._filled.put(None)

    def __enter__(self) -> Self:
        for slot in self._slots:
            self._free.put(slot)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._free.empty():
            self._free.get()
        self._free.put(None)
        self._thread.join()


class _Slot:
    """Memory of one read on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = HostMemory(pinned=device.type == "cuda")
        self._tensor = torch.empty(0)

    def fill(self, read: R, fetch: Fetch[R]) -> None:
        """Read, in the reading thread."""
        self._tensor = fetch(read, self._memory)

    def ready(self) -> torch.Tensor:
        """Return the tensor, to the computing thread."""
        return self._tensor

    def release(self) -> None:
        """Say that the tensor has been used."""


class _CudaSlot(_Slot):
    """Pinned memory and as much on the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's own
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._released = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._on_device = torch.empty(0, dtype=torch.uint8, device=device)

    def fill(self, read: R, fetch: Fetch[R]) -> None:
        self._copied.synchronize()  # the pinned memory is still being copied from
        super().fill(read, fetch)
        source = self._tensor.reshape(-1).view(torch.uint8)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._released)
            if self._on_device.numel() < source.numel():
                self._on_device = torch.empty(source.numel(), dtype=torch.uint8, device=self.device)
            target = self._on_device[: source.numel()]
            target.copy_(source, non_blocking=True)
            self._copied.record(self._stream)
        self._tensor = target.view(self._tensor.dtype).view(self._tensor.shape)

    def ready(self) -> torch.Tensor:
        torch.cuda.current_stream(self.device).wait_event(self._copied)
        return self._tensor

    def release(self) -> None:
        self._released.record(torch.cuda.current_stream(self.device))
