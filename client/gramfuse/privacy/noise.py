"""Gaussian noise for privacy: from a cryptographic source, and rounded so that no low bit tells of what lies beneath.

Words come from AES-256 in counter mode under a key of 32 bytes that the operating system drew, a normal value from 64
bits of them by the inverse of its distribution: a sign, and 63 bits for the tail's probability, so that the relative
error is that of a double wherever the value lies. What is released is a whole multiple of a step, and is computed so
that the released multiple is the exact sum's, rounded: floating-point noise that is merely added reveals in its low
bits what it was added to (Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012).
"""

import math
import os
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from scipy.special import ndtri

KEY_BYTES: Final = 32
_STEPS: Final = 64
"""Steps to a standard deviation: rounding adds 2e-5 of the noise's variance."""

_WORD: Final = 8
_TAIL: Final = np.uint64(2**63 - 1)


class NoiseSource:
    """A stream of independent standard normal values that nobody can foretell."""

    def __init__(self, key: bytes | None = None) -> None:
        """Begin a stream.

        Args:
            key: 32 bytes; None draws them from the operating system. A key that anybody else knows undoes the noise: it
                is for tests alone.
        """
        drawn = os.urandom(KEY_BYTES) if key is None else key
        self._stream = Cipher(AES(drawn), CTR(bytes(16))).encryptor()

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return `count` values of N(0, 1), float64."""
        words = np.frombuffer(self._stream.update(bytes(_WORD * count)), dtype="<u8")
        probability = ((words & _TAIL).astype(np.float64) + 0.5) * 2.0**-64  # in (0, 1/2]
        tail = ndtri(probability)
        signed: NDArray[np.float64] = np.where(words >> np.uint64(63), tail, -tail)
        return signed

    def symmetric(self, width: int) -> NDArray[np.float64]:
        """Return a symmetric matrix [d, d] of N(0, 1) on the diagonal and N(0, 1/2), mirrored, off it.

        As a vector of its diagonal and √2 times its lower triangle, whose length is the matrix's Frobenius norm, it is
        d(d+1)/2 independent values of N(0, 1): the noise that the Gaussian mechanism asks of such vectors.
        """
        matrix = np.zeros((width, width))
        lower = np.tril_indices(width, -1)
        matrix[lower] = self.normal(len(lower[0])) * math.sqrt(0.5)
        matrix += matrix.T
        np.fill_diagonal(matrix, self.normal(width))
        return matrix


def step_of(sigma: float) -> float:
    """Return the step of a release: the largest power of two up to σ/64. It hangs on σ alone, which is public."""
    return 2.0 ** math.floor(math.log2(sigma / _STEPS))


def add_noise(values: NDArray[np.float64], noise: NDArray[np.float64], *, step: float) -> NDArray[np.float64]:
    """Return values + noise, rounded to whole steps, float64.

    A value is a whole number of steps and an exact rest; only the rest, of half a step at most, meets the noise, so
    that its rounding is the noise's own and does not grow with the value.
    """
    whole = np.rint(values / step)
    rest = values - whole * step  # exact: a step is a power of two
    rounded: NDArray[np.float64] = (whole + np.rint((rest + noise) / step)) * step
    return rounded
