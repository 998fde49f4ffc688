"""Writes what a merge changed in its base as a PEFT adapter of chosen rank, and says what is lost by that."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch

from gramfuse.adapters.description import write_description
from gramfuse.adapters.drafting import Draft, Truncation
from gramfuse.adapters.exported import ExportedAdapter
from gramfuse.adapters.structure import read_structure
from gramfuse.complete_folder import complete_folder
from gramfuse.contributing.loading import ADAPTER_FILE, weight_file_names
from gramfuse.progress import ReadCount
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.safetensors_header import FLOAT_DTYPES
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConfigurationError,
    ConflictError,
    WeightsInvalidError,
)
from gramfuse_shared.merging.execution import DeviceChoice, choose_device
from gramfuse_shared.merging.streaming import LocalFile, TensorFile, TensorFiles
from gramfuse_shared.merging.writing import ShardWriter

DEFAULT_RANK: Final = 16

OnProgress = Callable[[int, int], None]
"""Called with the bytes read so far and in all."""


def export_adapter(
    merged: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    device: DeviceChoice = "auto",
    on_progress: OnProgress = lambda _done, _total: None,
) -> ExportedAdapter:
    """Write W_merged − W_base as a LoRA adapter, which `peft.PeftModel.from_pretrained(base, out)` loads.

    Linear layers are truncated to a rank. What else the merge changed is held exactly: the biases of these layers
    (`bias: lora_only`), and modules such as norms and embeddings whole (`modules_to_save`). Tied weights and parameters
    that no module of their own holds are left out, and named. `README.md` in the folder says all that.

    Args:
        merged: a merged `from_pretrained` folder.
        base: the base model's folder.
        out: the folder to write; it appears when it is complete.
        rank: the largest rank of a layer; default 16, unless `energy` is given.
        energy: in place of a rank, the share of each ‖Δ‖²_F to keep, in (0, 1].
        device: where to decompose.
        on_progress: called with the bytes read so far and in all.

    Raises:
        ConfigurationError: neither a rank of at least 1 nor a share in (0, 1], or both.
        ConflictError: `out` is there already.
        ArchitectureMismatchError: the models do not have the same tensors, or do not differ.
        WeightsInvalidError: one of them holds NaN or infinity.
        FileUnreadableError, HeaderMalformedError: a file of theirs.
        FileUnwritableError: the disk is full or not writable.
    """
    _require_one_measure(rank, energy)
    rank = DEFAULT_RANK if rank is None and energy is None else rank
    target = Path(out)
    if target.exists():
        msg = f"{target} is there already; choose another folder"
        raise ConflictError(msg)
    truncation = Truncation(rank, energy, choose_device(device))
    draft = Draft(read_structure(Path(base)))
    with ExitStack() as stack:
        theirs, ours = (_open(Path(folder), stack) for folder in (base, merged))
        _require_alike(theirs, ours)
        count = ReadCount(2 * sum(entry.length for entry in theirs.tensors.values()), on_progress)
        for name, before, after in _changed(theirs, ours, count):
            draft.add(name, before, after, truncation)
        if not draft.size and not draft.left_out:
            msg = f"{merged} and {base} have the same weights, so there is nothing to export"
            raise ArchitectureMismatchError(msg)
        draft.complete_modules(ours)
    with complete_folder(target) as beside:
        written = _write(draft, beside / ADAPTER_FILE)
        done = ExportedAdapter(
            target,
            tuple(draft.layers),
            tuple(draft.whole),
            tuple(draft.left_out),
            draft.error,
            written,
        )
        write_description(beside, draft.configuration(), done.to_json())
    return done


def _require_one_measure(rank: int | None, energy: float | None) -> None:
    both = rank is not None and energy is not None
    if both or (rank is not None and rank < 1) or (energy is not None and not 0 < energy <= 1):
        msg = f"rank is {rank} and energy {energy}: give a rank of at least 1, or a share above 0 and up to 1"
        raise ConfigurationError(msg)


def _changed(
    theirs: TensorFiles, ours: TensorFiles, count: ReadCount
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for name, entry in sorted(theirs.tensors.items()):
        before, after = theirs.read(name), ours.read(name)
        count.add(2 * entry.length)
        if entry.dtype in FLOAT_DTYPES:
            for values in (before, after):
                if not bool(values.isfinite().all()):
                    msg = f"{name} holds NaN or infinity, so no adapter can be made of it"
                    raise WeightsInvalidError(msg, tensor=name)
        if not torch.equal(before, after):
            yield name, before, after


def _write(draft: Draft, target: Path) -> int:
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
    # widest first: each tensor then starts at a multiple of its item's size
    order = sorted(draft.values.items(), key=lambda item: (-item[1].element_size(), item[0]))
    layout = [
        TensorInfo.model_validate({"name": key, "dtype": names[values.dtype], "shape": tuple(values.shape)})
        for key, values in order
    ]
    with ShardWriter(target, layout, {"format": "pt"}) as writer:
        for key, values in order:
            writer.write(key, values.reshape(-1))
    return sum(values.numel() * values.element_size() for _, values in order)


def _require_alike(theirs: TensorFiles, ours: TensorFiles) -> None:
    for name in sorted(theirs.tensors.keys() | ours.tensors.keys()):
        shapes = [None if name not in files.tensors else files.tensors[name].shape for files in (theirs, ours)]
        if shapes[0] != shapes[1]:
            found = " and ".join("not there" if shape is None else str(list(shape)) for shape in shapes)
            msg = f"{name} is {found} in the base and in the merged model; name the base that it was merged from"
            raise ArchitectureMismatchError(msg, tensor=name)


def _open(folder: Path, stack: ExitStack) -> TensorFiles:
    files = (stack.enter_context(LocalFile(folder / name)) for name in weight_file_names(folder))
    return TensorFiles([TensorFile.open(file) for file in files])
