"""Masking of words with twenty keystreams each, as a member of a cohort of twenty masks: per core, beside its bound.

What bounds it is AES-256 in counter mode on one core, divided by the keystreams: every word of every stream is made
once. Measured in the processor time of one thread, so that other work on the machine counts for neither.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from timing import Effort

from gramfuse_shared.secure.masks import BLOCK_WORDS, Mask, TensorMasks

KEYSTREAMS = 20  # one with each of nineteen others, and one's own


def measure(effort: Effort) -> dict[str, Any]:
    """Return gigabytes of masked words a second and core, AES's own, and the share of the bound that is reached."""
    count = 2**16 if effort.is_smoke else 2**23
    words = np.zeros(count, dtype=np.uint64)
    masks = [Mask(os.urandom(32), 1 if index % 2 else -1) for index in range(KEYSTREAMS)]
    rates: dict[str, list[float]] = {"masking": [], "aes_ctr": []}
    for number in range(effort.rounds + 1):
        masking = _processor_seconds(lambda: TensorMasks(masks, 0).add_to(words))
        stream = _processor_seconds(lambda: _keystream(8 * count))
        if number:
            rates["masking"].append(8 * count / masking / 1e9)
            rates["aes_ctr"].append(8 * count / stream / 1e9)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    bound = medians["aes_ctr"] / KEYSTREAMS
    return {
        "masking_gb_per_second": medians["masking"],
        "aes_ctr_gb_per_second": medians["aes_ctr"],
        "masking_bound_gb_per_second": bound,
        "share_of_aes_bound": medians["masking"] / bound,
        "keystreams": KEYSTREAMS,
    }


def _keystream(size: int) -> None:
    """Make one keystream of so many bytes, in the blocks that masking uses."""
    block = 8 * BLOCK_WORDS
    zeros, target = bytes(block), bytearray(block + 16)
    encryptor = Cipher(AES(bytes(32)), CTR(bytes(16))).encryptor()
    for _ in range(0, size, block):
        encryptor.update_into(zeros, target)


def _processor_seconds(run: Callable[[], object]) -> float:
    began = time.thread_time()
    run()
    return time.thread_time() - began
