"""Numbers as words of a ring: fixed point in two's complement, so that sums modulo 2^64 are sums of numbers."""

import torch

from gramfuse_shared.contract.secure_session import SummedTensor
from gramfuse_shared.errors import ValueOutOfBoundsError


def encode(values: torch.Tensor, tensor: SummedTensor) -> torch.Tensor:
    """Return round(x·2^f) as int64: exact to half a quantum, 2^-f/2, and to float64's own 53 bits.

    Args:
        values: float64, any shape.
        tensor: with its bound and f, the fraction bits.

    Raises:
        ValueOutOfBoundsError: a value is NaN, infinite, or over the bound; nothing may be sent then.
    """
    if values.numel():
        least, most = torch.aminmax(values)
        # comparisons that NaN fails
        if not bool((least >= -tensor.bound) & (most <= tensor.bound)):
            msg = (
                f"{tensor.name} holds NaN, infinity or a value over the session's bound of {tensor.bound:g}, so "
                "nothing is sent; check model and statistics. Where features are so much larger than on the text that "
                "the project's scales were collected on, have these collected on text more like everybody's"
            )
            raise ValueOutOfBoundsError(msg, tensor=tensor.name, bound=tensor.bound)
    return torch.round(torch.mul(values, 2.0**tensor.fraction_bits)).to(torch.int64)


def decode(words: torch.Tensor, tensor: SummedTensor) -> torch.Tensor:
    """Return w·2^-f in float64, of the shape of the words, int64."""
    return words.to(torch.float64).mul_(2.0**-tensor.fraction_bits)
