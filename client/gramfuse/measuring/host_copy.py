"""Values of a tensor on the CPU, without waiting for the device until they are needed."""

import torch


class HostCopy:
    """A copy of a device's tensor as it is now, on its way; of a CPU's tensor, the tensor itself."""

    __slots__ = ("_arrived", "_values")

    def __init__(self, tensor: torch.Tensor) -> None:
        """Begin the copy, behind what the device has still to do."""
        self._values = tensor.detach()
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch's own
            self._arrived.record(torch.cuda.current_stream(tensor.device))
        elif tensor.device.type != "cpu":
            self._values = tensor.detach().cpu()

    def is_ready(self) -> bool:
        """Tell whether `values` would not wait."""
        return self._arrived is None or bool(self._arrived.query())  # type: ignore[no-untyped-call]

    @property
    def values(self) -> torch.Tensor:
        """The values; waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._values
