"""Files whose tensors travel in another form, read as if they did not."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from gramfuse_shared.contract.manifest import LeftOut, StatisticsEncoding, TensorInfo, WeightsEncoding
from gramfuse_shared.contract.safetensors_header import TensorEntry
from gramfuse_shared.contract.statistics_file import DIAGONAL_PREFIX, GRAM_PREFIX, diagonal_tensor_name
from gramfuse_shared.fusion.rounding import decode_int16
from gramfuse_shared.merging.streaming import Memory, TensorReader


def decode_weights(
    file: TensorReader, encoding: WeightsEncoding, base: TensorReader, left_out: LeftOut = "unknown"
) -> TensorReader:
    """Return a reader of a weights file that gives the weights themselves, left out ones where they are the base's."""
    weights = file if encoding == "stored" else Differences(file, base)
    return weights if left_out == "unknown" else OverBase(weights, base)


def decoded_tensors(tensors: Iterable[TensorInfo], encoding: WeightsEncoding) -> dict[str, TensorInfo]:
    """List the tensors of a weights file by name, as `decode_weights` gives them."""
    if encoding == "stored":
        return {tensor.name: tensor for tensor in tensors}
    return {tensor.name: tensor.model_copy(update={"dtype": "F32"}) for tensor in tensors}


def decode_statistics(file: TensorReader, encoding: StatisticsEncoding) -> TensorReader:
    """Return a reader of a statistics file that gives every Gram matrix packed in fp32."""
    return file if encoding == "float32" else RoundedStatistics(file)


class RoundedStatistics:
    """A statistics file in the encoding int16."""

    def __init__(self, file: TensorReader) -> None:
        """Take the file; its header has been checked against its metadata."""
        self._file = file
        self._tensors = {
            name: replace(entry, dtype="F32")
            for name, entry in file.tensors.items()
            if not name.startswith(DIAGONAL_PREFIX)
        }

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """The Gram matrices without their values."""
        return self._tensors

    def read(self, name: str) -> torch.Tensor:
        """Return a packed Gram matrix, fp32, on the CPU. Raises as `TensorFile.read` does."""
        return self._decode(name, None)

    def read_elements(self, name: str, start: int, stop: int, memory: Memory | None = None) -> torch.Tensor:
        """Return elements [start, stop) of a packed Gram matrix, fp32, on the CPU, in `memory` if given."""
        return self._decode(name, memory)[start:stop]

    def _decode(self, name: str, memory: Memory | None) -> torch.Tensor:
        rounded = self._file.read(name)
        energy = self._file.read(diagonal_tensor_name(name.removeprefix(GRAM_PREFIX)))
        gram = _take(memory, rounded.numel())
        decode_int16(rounded, energy, energy.numel(), gram)
        return gram


class Differences:
    """A file of differences from the base model: W = W_base + Δ, added in fp32."""

    def __init__(self, file: TensorReader, base: TensorReader) -> None:
        """Take the differences and the base's tensors, which have the same names and shapes."""
        self._file = file
        self._base = base

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """The weights without their values."""
        return {name: replace(entry, dtype="F32") for name, entry in self._file.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """Return one weight, fp32, on the CPU. Raises as `TensorFile.read` does."""
        return self._base.read(name).float() + self._file.read(name)

    def read_elements(self, name: str, start: int, stop: int, memory: Memory | None = None) -> torch.Tensor:
        """Return elements [start, stop) of the flattened weight, fp32, on the CPU, in `memory` if given."""
        difference = self._file.read_elements(name, start, stop)
        weights = _take(memory, difference.numel())
        return weights.copy_(self._base.read_elements(name, start, stop)).add_(difference)


class OverBase:
    """Weights over the base model's: what the one file does not hold is read from the base."""

    def __init__(self, file: TensorReader, base: TensorReader) -> None:
        """Take the weights that are there and the base's tensors."""
        self._file = file
        self._base = base
        self._own = file.tensors

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """All weights without their values."""
        return {**self._base.tensors, **self._own}

    def read(self, name: str) -> torch.Tensor:
        """Return one weight as it is stored, on the CPU. Raises as `TensorFile.read` does."""
        return self._of(name).read(name)

    def read_elements(self, name: str, start: int, stop: int, memory: Memory | None = None) -> torch.Tensor:
        """Return elements [start, stop) of the flattened weight as it is stored, on the CPU, in `memory` if given."""
        return self._of(name).read_elements(name, start, stop, memory)

    def _of(self, name: str) -> TensorReader:
        return self._file if name in self._own else self._base


def _take(memory: Memory | None, count: int) -> torch.Tensor:
    content = torch.empty(4 * count, dtype=torch.uint8) if memory is None else memory.take(4 * count)
    return content.view(torch.float32)
