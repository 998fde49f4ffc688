"""Masks: keystreams of AES-256 in counter mode, added to 64-bit words modulo 2^64, chunk by chunk.

The counter block is the tensor's number in the session, eight bytes big-endian, and then the number of the block in the
tensor's stream, so that no two tensors, and with one key per pair no two pairs, share a block. A word is eight bytes of
the stream, little-endian.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Words: TypeAlias = npt.NDArray[np.uint64]
"""64-bit words; numpy's sums and differences of them are modulo 2^64."""

BLOCK_WORDS: Final = 8192
"""Words that are masked at once, by one keystream after the other: words, keystream and zeros lie in a core's cache.
Of sizes from 2^10 to 2^17 words 2^13 and 2^14 were the fastest."""

_WORD_BYTES: Final = 8
_AES_BLOCK_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Mask:
    """A keystream by its 32-byte key, and whether it is added or subtracted."""

    key: bytes = field(repr=False)
    sign: Literal[1, -1]

    def inverse(self) -> "Mask":
        """Return what takes this mask away again."""
        return Mask(self.key, 1 if self.sign == -1 else -1)


class TensorMasks:
    """The masks of one tensor, from its first word on; memory does not grow with the tensor."""

    def __init__(self, masks: Sequence[Mask], tensor: int) -> None:
        """Begin the streams.

        Args:
            masks: any number; none leave words as they are.
            tensor: the tensor's number among the session's sums.
        """
        counter = tensor.to_bytes(_WORD_BYTES, "big") + bytes(_WORD_BYTES)
        self._streams = [
            (Cipher(AES(mask.key), CTR(counter)).encryptor(), np.add if mask.sign == 1 else np.subtract)
            for mask in masks
        ]
        # cryptography asks for a block more than it writes
        stream = np.empty(BLOCK_WORDS + _AES_BLOCK_BYTES // _WORD_BYTES, dtype="<u8")
        self._stream, self._target = stream[:BLOCK_WORDS], stream.data.cast("B")
        self._zeros = memoryview(bytes(BLOCK_WORDS * _WORD_BYTES))

    def add_to(self, words: Words) -> None:
        """Add the masks to the tensor's next words, in place: words ← words + Σ ±stream mod 2^64.

        Args:
            words: uint64, one-dimensional and contiguous.
        """
        for start in range(0, len(words), BLOCK_WORDS):
            block = words[start : start + BLOCK_WORDS]
            zeros, stream = self._zeros[: _WORD_BYTES * len(block)], self._stream[: len(block)]
            for encryptor, add in self._streams:
                encryptor.update_into(zeros, self._target)
                add(block, stream, out=block)
