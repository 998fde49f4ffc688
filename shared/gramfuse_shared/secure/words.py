"""The file of masked words: a safetensors file with a tensor I64 for each of the session's sums, in their order."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.secure import WORDS_FILE_NAME
from gramfuse_shared.contract.secure_session import SessionManifest, SummedTensor
from gramfuse_shared.errors import HeaderMalformedError
from gramfuse_shared.merging.streaming import TensorReader
from gramfuse_shared.merging.writing import ShardWriter
from gramfuse_shared.secure.masks import Mask, TensorMasks, Words
from gramfuse_shared.secure.ring import encode


class Values(Protocol):
    """What a member adds to each sum: `Summands` of a contribution, or those of an announced answer."""

    def chunks(self, tensor: SummedTensor) -> Iterator[torch.Tensor]:
        """Yield the values of one sum in order, flat, float64."""
        ...


def write_words(target: Path, session: SessionManifest, masks: Sequence[Mask], values: Values) -> FileEntry:
    """Encode, mask and write one tensor after the other; the file appears when it is complete and on the disk.

    Raises:
        ValueOutOfBoundsError: a value may not be sent; nothing is left behind.
        FileUnreadableError, FileUnwritableError: weights, statistics or the disk.
    """
    with ShardWriter(target, list(session.words)) as shard:
        for number, tensor in enumerate(session.sums):
            tensor_masks = TensorMasks(masks, number)
            for chunk in values.chunks(tensor):
                words = encode(chunk, tensor)
                tensor_masks.add_to(as_words(words))
                shard.write(tensor.name, words)
    return shard.entry.model_copy(update={"name": WORDS_FILE_NAME})


def require_words(file: TensorReader, session: SessionManifest) -> None:
    """Require that a file holds the words of this session's sums.

    Raises:
        HeaderMalformedError: it holds other tensors, or in another order.
    """
    found = [(entry.name, entry.dtype, entry.shape) for entry in file.tensors.values()]
    if found != [(info.name, info.dtype, info.shape) for info in session.words]:
        msg = f"the file does not hold the {len(session.sums)} tensors of words that the session {session.session} sums"
        raise HeaderMalformedError(msg)


def as_words(words: torch.Tensor) -> Words:
    """Look at int64 as at words; both are the same bits."""
    return words.numpy().view(np.uint64)
