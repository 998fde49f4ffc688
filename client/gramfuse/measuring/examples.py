"""Which example each row comes from: examples are known again by a hash of their inputs without padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gramfuse.measuring.distinct import Readers, example_hash
from gramfuse.measuring.host_copy import HostCopy
from gramfuse.measuring.masking import DECODER_CONTENT, MATRIX, Frame, main_input
from gramfuse.measuring.masks import Mask, RowCount


@dataclass(frozen=True, slots=True)
class Examples:
    """The inputs of a call, on their way to the CPU, to tell its examples apart: by name, with the mask of each."""

    batch: int
    inputs: tuple[tuple[str, HostCopy, Mask | None], ...] = ()

    def is_ready(self) -> bool:
        """Tell whether `hashes` would not wait for a device."""
        return all(copy.is_ready() and (mask is None or mask.is_on_host()) for _, copy, mask in self.inputs)

    def hashes(self) -> tuple[bytes, ...]:
        """Return a hash per example of its inputs without padding; equal texts have equal hashes in any batch."""
        contents: list[list[bytes]] = [[] for _ in range(self.batch)]
        for name, copy, mask in self.inputs:
            for parts, part in zip(contents, _unpadded(copy.values, mask), strict=True):
                parts.append(name.encode())
                parts.append(part)
        return tuple(example_hash(*parts) for parts in contents)


@dataclass(frozen=True, slots=True)
class PassCounts:
    """What a forward pass adds to the counts of rows: by readers, and by example where there are any."""

    examples: Examples
    counts: tuple[tuple[Readers, RowCount], ...]

    def is_ready(self) -> bool:
        """Tell whether counting would not wait for a device."""
        return self.examples.is_ready() and all(count.is_ready() for _, count in self.counts)


def examples_of(bound: Mapping[str, Any], frame: Frame) -> Examples:
    """Note the inputs by which the examples of an outermost call are known."""
    if frame.batch is None:
        return Examples(0)
    inputs = []
    for name, tensor in _content(bound, frame):
        if tensor.dim() and tensor.shape[0] == frame.batch:
            mask = frame.encoder_mask if frame.two_sided and name not in DECODER_CONTENT else frame.mask
            inputs.append((name, HostCopy(tensor), mask))
    return Examples(frame.batch, tuple(inputs))


def _content(bound: Mapping[str, Any], frame: Frame) -> Sequence[tuple[str, torch.Tensor]]:
    main = main_input(bound)
    names = ["token_type_ids"]
    if frame.two_sided:
        names += [next((name for name in DECODER_CONTENT if bound.get(name) is not None), "decoder_input_ids")]
    also = [(name, bound[name]) for name in names if isinstance(bound.get(name), torch.Tensor)]
    return also if main is None else [main, *also]


def _unpadded(values: torch.Tensor, mask: Mask | None) -> list[bytes]:
    keep = mask.on_host if mask is not None else None
    if keep is None or values.dim() < MATRIX or keep.shape != values.shape[:2]:
        return [_bytes(row) for row in values]
    return [_bytes(row[kept]) for row, kept in zip(values, keep, strict=True)]


def _bytes(values: torch.Tensor) -> bytes:
    return values.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
