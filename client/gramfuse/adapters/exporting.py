"""Writes what a merge changed in its base as a PEFT adapter of chosen rank, and says what is lost by that."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from gramfuse.adapters.adapter import KEY_PREFIX
from gramfuse.adapters.description import write_description
from gramfuse.adapters.factorizing import factorize
from gramfuse.adapters.structure import Structure, read_structure
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


@dataclass(frozen=True, slots=True)
class ExportedLayer:
    """A linear weight as BA: its tensor and module, the rank kept of how many, and ‖Δ − BA‖_F / ‖Δ‖_F."""

    tensor: str
    module: str
    rank: int
    full_rank: int
    error: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that the merge changed and the adapter cannot hold, and why: it stays the base's."""

    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """What was written.

    Attributes:
        path: the adapter's folder.
        layers: linear weights, truncated.
        whole: tensors that the adapter holds in their whole size, exactly.
        left_out: changed tensors that it does not hold.
        error: ‖Δ − Δ′‖_F / ‖Δ‖_F over all tensors, Δ the merge's difference from the base and Δ′ the adapter's.
        bytes: of the adapter's tensors.
    """

    path: Path
    layers: tuple[ExportedLayer, ...]
    whole: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    error: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "error": self.error,
            "layers": [
                {
                    "tensor": layer.tensor,
                    "rank": layer.rank,
                    "full_rank": layer.full_rank,
                    "error": layer.error,
                }
                for layer in self.layers
            ],
            "whole": list(self.whole),
            "left_out": [{"tensor": entry.tensor, "reason": entry.reason} for entry in self.left_out],
            "bytes": self.bytes,
        }


@dataclass(slots=True)
class _Draft:
    """What has been found so far: PEFT's keys and values, and sums of squares over all tensors."""

    structure: Structure
    layers: list[ExportedLayer] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)  # tensor to its key
    biases: bool = False
    transposed: bool = False
    left_out: list[LeftOut] = field(default_factory=list)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    lost: float = 0.0
    size: float = 0.0


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
    chosen = choose_device(device)
    draft = _Draft(read_structure(Path(base)))
    with ExitStack() as stack:
        theirs, ours = (_open(Path(folder), stack) for folder in (base, merged))
        _require_alike(theirs, ours)
        count = ReadCount(2 * sum(entry.length for entry in theirs.tensors.values()), on_progress)
        for name, before, after in _changed(theirs, ours, count):
            _add(draft, name, before, after, rank, energy, chosen)
        if not draft.size and not draft.left_out:
            msg = f"{merged} and {base} have the same weights, so there is nothing to export"
            raise ArchitectureMismatchError(msg)
        _add_rest_of_modules(draft, ours)
    with complete_folder(target) as beside:
        written = _write(draft, beside / ADAPTER_FILE)
        done = ExportedAdapter(
            target,
            tuple(draft.layers),
            tuple(draft.whole),
            tuple(draft.left_out),
            math.sqrt(draft.lost / draft.size) if draft.size else 0.0,
            written,
        )
        write_description(beside, _configuration(draft), done.to_json())
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


def _add(
    draft: _Draft,
    name: str,
    before: torch.Tensor,
    after: torch.Tensor,
    rank: int | None,
    energy: float | None,
    device: torch.device,
) -> None:
    structure = draft.structure
    kind, module = structure.kinds.get(name), structure.modules.get(name)
    difference = after.double() - before.double()
    reason = _why_left_out(structure, name, after)
    if reason is not None or module is None:
        draft.left_out.append(LeftOut(name, reason or ""))
        draft.lost += float(difference.square().sum())
    elif kind in ("linear", "conv1d"):
        difference = difference.T if kind == "conv1d" else difference  # [out, in]
        factors = factorize(difference.float(), rank=rank, energy=energy, device=device)
        draft.transposed |= kind == "conv1d"
        draft.values[f"{KEY_PREFIX}{module}.lora_A.weight"] = factors.a
        draft.values[f"{KEY_PREFIX}{module}.lora_B.weight"] = factors.b
        error = math.sqrt(factors.lost / factors.size)
        draft.layers.append(ExportedLayer(name, module, factors.rank, min(difference.shape), error))
        draft.lost += factors.lost
    else:
        key = structure.paths[name]
        draft.whole[name] = f"{KEY_PREFIX}{key}"
        draft.values[f"{KEY_PREFIX}{key}"] = after.contiguous()
    draft.size += float(difference.square().sum())


def _why_left_out(structure: Structure, name: str, values: torch.Tensor) -> str | None:
    module = structure.modules.get(name)
    if name in structure.tied:
        return "it is tied to another weight"
    if not values.is_floating_point():
        return "it holds integers"
    if not module:
        return "no module of the model holds it"
    if any(other.startswith(f"{module}.") for other in structure.modules.values()):
        return "the module that holds it has modules within, and PEFT saves whole modules only"
    return None


def _add_rest_of_modules(draft: _Draft, ours: TensorFiles) -> None:
    """Complete the modules that are saved whole; a bias of an adapted layer is saved with the layer."""
    adapted = {layer.module for layer in draft.layers}
    saved = {draft.structure.modules[name] for name in draft.whole} - adapted
    for name in [name for name in draft.whole if draft.structure.modules[name] in adapted]:
        module, leaf = draft.structure.modules[name], draft.structure.paths[name].rpartition(".")[2]
        draft.biases = True
        values = draft.values.pop(draft.whole[name])
        draft.whole[name] = f"{KEY_PREFIX}{module}.base_layer.{leaf}"
        draft.values[draft.whole[name]] = values
    for name, module in draft.structure.modules.items():
        key = f"{KEY_PREFIX}{draft.structure.paths[name]}"
        if module in saved and key not in draft.values and name in ours.tensors:
            draft.values[key] = ours.read(name)


def _configuration(draft: _Draft) -> dict[str, Any]:
    ranks = Counter(layer.rank for layer in draft.layers)
    common = max(ranks, key=lambda rank: (ranks[rank], rank), default=1)
    # PEFT matches patterns as regular expressions from the start or behind a dot; anchored, they mean one module
    patterns = {f"^{_escaped(layer.module)}": layer.rank for layer in draft.layers if layer.rank != common}
    adapted = {layer.module for layer in draft.layers}
    saved = sorted({draft.structure.modules[name] for name in draft.whole} - adapted)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": _targets(draft, adapted),
        "modules_to_save": saved or None,
        "bias": "lora_only" if draft.biases else "none",
        "fan_in_fan_out": draft.transposed,
        "lora_dropout": 0.0,
    }


def _targets(draft: _Draft, adapted: set[str]) -> list[str] | str:
    """Name the modules by their paths; by one regular expression where a path is the end of another module's."""
    others = set(draft.structure.modules.values()) - adapted
    if adapted and not any(other.endswith(f".{module}") for other in others for module in adapted):
        return sorted(adapted)
    if not adapted:
        return "dummy-target-modules"  # PEFT's own word for none: what matches no module is refused otherwise
    return "|".join(_escaped(module) for module in sorted(adapted))


def _escaped(module: str) -> str:
    return module.replace(".", r"\.")


def _write(draft: _Draft, target: Path) -> int:
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
