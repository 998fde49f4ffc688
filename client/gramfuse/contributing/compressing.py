"""Halve what a push sends: weights as bfloat16 differences from the base, statistics as int16. Says what is lost."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from gramfuse.complete_folder import complete_folder
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.loading import (
    BASE_KEY,
    DIFFERENCES_FILE,
    ModelFolder,
    StatisticsFile,
    open_model_folder,
    open_statistics_file,
    weight_file_names,
)
from gramfuse.contributing.origin import digest_of_weights, note_of, read_origin, require_same_model
from gramfuse.contributing.plan import STATISTICS_FILE_NAME
from gramfuse.progress import ReadCount
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.rules import CONTRIBUTED_DTYPES
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import (
    METADATA_KEY,
    diagonal_tensor_name,
    gram_tensor_name,
    tensors_of_taps,
)
from gramfuse_shared.errors import ConflictError, StatisticsMalformedError
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.rounding import encode_int16, rounding_error
from gramfuse_shared.identifiers import Digest
from gramfuse_shared.merging.schedule import element_ranges
from gramfuse_shared.merging.streaming import LocalFile, TensorFile, TensorFiles
from gramfuse_shared.merging.writing import ShardWriter

OnBytes = Callable[[int, int], None]
"""Called with the bytes read so far and in all."""

_ACCUMULATED: Final = torch.float64


@dataclass(frozen=True, slots=True)
class Compression:
    """What was written, and how much it differs from what was measured and trained.

    Attributes:
        folder: holds `differences.safetensors` and, where statistics were given, `statistics.safetensors`.
        bytes_before: of the same tensors as they were.
        bytes_after: of the files.
        weights_error: ‖Δ − bf16(Δ)‖_F / ‖Δ‖_F over all weights, Δ = W − W_base; 0 where nothing was tuned.
        statistics_error: the largest ‖C − int16(C)‖_F / ‖C‖_F of a tap, C = D^-½GD^-½; None without statistics.
    """

    folder: Path
    bytes_before: int
    bytes_after: int
    weights_error: float
    statistics_error: float | None


def compress(
    model: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    statistics: str | Path | None = None,
    on_progress: OnBytes = lambda _done, _total: None,
) -> Compression:
    """Write a contribution that is half as large into a new folder, which `push` takes in place of the model's.

    Tensors that the base does not store with the same shape, and integers, are left out: they never travel.

    Args:
        model: the fine-tuned `from_pretrained` folder.
        base: the base model's folder, as it was pulled.
        out: the folder to write; it appears when it is complete.
        statistics: the statistics file as it was measured.
        on_progress: called with the bytes read so far and in all.

    Raises:
        ConflictError: `out` is there already.
        FileUnreadableError, HeaderMalformedError, StatisticsMalformedError: an input.
        ArchitectureMismatchError: the statistics were measured on another model.
        FileUnwritableError: the disk is full or not writable.
    """
    target = Path(out)
    if target.exists():
        msg = f"{target} is there already; choose another folder"
        raise ConflictError(msg)
    tuned = open_model_folder(Path(model))
    measured = None if statistics is None else open_statistics_file(Path(statistics))
    if measured is not None and measured.metadata.encoding != "float32":
        msg = f"{measured.path} is rounded already; give the file that `gramfuse stats collect` wrote"
        raise StatisticsMalformedError(msg)
    if measured is not None and read_origin(measured.path) is not None:
        require_same_model(measured.path, tuned.path, digest_of_weights(tuned.path))
    shared = _shared_tensors(tuned, open_model_folder(Path(base)))
    before = sum(tuned.tensors[name].length for name in shared)
    grams = 0 if measured is None else sum(entry.length for entry in measured.tensors.values())
    count = ReadCount(before + 2 * grams, on_progress)
    with complete_folder(target, private=True) as beside:
        weights_error = _write_differences(tuned, Path(base), shared, beside / DIFFERENCES_FILE, count)
        statistics_error = None
        if measured is not None:
            measured_on = None if read_origin(measured.path) is None else digest_of_weights(beside)
            statistics_error = _write_rounded(measured, beside / STATISTICS_FILE_NAME, measured_on, count)
            (beside / STATISTICS_FILE_NAME).chmod(0o600)  # as what was measured is
        after = sum(path.stat().st_size for path in beside.iterdir())
    return Compression(target, before + grams, after, weights_error, statistics_error)


def _shared_tensors(tuned: ModelFolder, base: ModelFolder) -> list[str]:
    """Name the floating-point tensors that both store with one shape, in the order in which they are written."""
    return sorted(
        name
        for name, tensor in tuned.tensors.items()
        if tensor.info.dtype in CONTRIBUTED_DTYPES
        and name in base.tensors
        and base.tensors[name].info.shape == tensor.info.shape
    )


def _write_differences(tuned: ModelFolder, base: Path, names: list[str], target: Path, count: ReadCount) -> float:
    layout = [tuned.tensors[name].info.model_copy(update={"dtype": "BF16"}) for name in names]
    metadata = {BASE_KEY: build_base_manifest(base).content_digest()}
    lost = size = torch.zeros((), dtype=_ACCUMULATED)
    with ExitStack() as stack, ShardWriter(target, layout, metadata) as writer:
        mine, theirs = (_open(folder, stack) for folder in (tuned.path, base))
        for tensor in layout:
            for start, stop in element_ranges(torch.Size(tensor.shape).numel(), DTYPE_BYTES["F32"]):
                weights = mine.read_elements(tensor.name, start, stop)
                difference = weights.float() - theirs.read_elements(tensor.name, start, stop).float()
                rounded = difference.bfloat16()
                lost = lost + (difference - rounded.float()).to(_ACCUMULATED).square().sum()
                size = size + difference.to(_ACCUMULATED).square().sum()
                writer.write(tensor.name, rounded)
                count.add(weights.numel() * weights.element_size())
    return float((lost / size).sqrt()) if float(size) else 0.0


def _write_rounded(measured: StatisticsFile, target: Path, measured_on: Digest | None, count: ReadCount) -> float:
    """Write the statistics rounded, as those of the differences; each matrix is read twice: diagonals stand first."""
    metadata = measured.metadata.model_copy(update={"encoding": "int16"})
    layout = [
        TensorInfo.model_validate({"name": name, "dtype": dtype, "shape": shape})
        for name, dtype, shape in tensors_of_taps(metadata.taps, metadata.encoding)
    ]
    worst = 0.0
    with (
        LocalFile(measured.path) as source,
        ShardWriter(target, layout, {METADATA_KEY: metadata.canonical().decode(), **note_of(measured_on)}) as writer,
    ):
        file = TensorFile.open(source)
        for tap in metadata.taps:
            gram = file.read(gram_tensor_name(tap.name))
            writer.write(diagonal_tensor_name(tap.name), packing.diagonal(gram, tap.width))
            count.add(gram.numel() * gram.element_size())
        for tap in metadata.taps:
            gram = file.read(gram_tensor_name(tap.name))
            rounded, energy = encode_int16(gram, tap.width)
            writer.write(gram_tensor_name(tap.name), rounded)
            worst = max(worst, rounding_error(gram, rounded, energy, tap.width))
            count.add(gram.numel() * gram.element_size())
    return worst


def _open(folder: Path, stack: ExitStack) -> TensorFiles:
    files = (stack.enter_context(LocalFile(folder / name)) for name in weight_file_names(folder))
    return TensorFiles([TensorFile.open(file) for file in files])
