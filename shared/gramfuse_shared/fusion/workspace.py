"""Memory that is used again, and a look at it: fresh pages cost as much as the arithmetic on them."""

import math

import torch


class Workspace:
    """Buffers by name on one device. A name's buffer grows to the largest size asked of it and is then kept."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Begin with no memory."""
        self.device = torch.device(device)
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous tensor with undefined content; what this name gave before is overwritten with it."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(name, None)  # freed before the larger one is allocated
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._buffers[name] = buffer
        return buffer[:size].view(dtype).view(shape)

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return the same, zeroed."""
        return self.take(name, shape, dtype).zero_()


def is_finite(values: torch.Tensor) -> bool:
    """Tell whether a floating-point tensor holds neither NaN nor infinity, without a copy of its size."""
    if values.numel() == 0:
        return True
    if values.element_size() == 1:  # float8 has no reductions
        values = values.float()
    low, high = values.aminmax()  # NaN is both
    return bool(torch.isfinite(low) & torch.isfinite(high))
