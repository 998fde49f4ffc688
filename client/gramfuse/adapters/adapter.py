"""A PEFT adapter and its base, compared by their headers: which of the base's tensors it changes, and how.

Nothing is unpickled, and no name or path that `adapter_config.json` holds is followed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from gramfuse.adapters.configuration import WAY_OUT, AdapterConfig, read_adapter_config
from gramfuse.contributing.loading import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ModelFolder,
    open_model_folder,
    read_header,
)
from gramfuse.contributing.virtual_files import Source
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.safetensors_header import FLOAT_DTYPES, TensorEntry
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError, FileUnreadableError

if TYPE_CHECKING:
    from gramfuse.adapters.structure import Structure

KEY_PREFIX: Final = "base_model.model."
"""What PEFT puts before a parameter's path in the model."""

_PICKLE_FILE: Final = "adapter_model.bin"

Part = Literal["A", "B", "bias", "value"]

_SUFFIXES: Final[tuple[tuple[str, Part, str], ...]] = (
    (".lora_A.weight", "A", ".weight"),
    (".lora_B.weight", "B", ".weight"),
    (".lora_embedding_A", "A", ".weight"),
    (".lora_embedding_B", "B", ".weight"),
    (".lora_B.bias", "bias", ".bias"),
)
"""What a key of the adapter ends with, what it holds, and the parameter of the module that it changes."""

# A second copy that `bias: all` writes of modules that are saved whole.
_COPIES: Final = (".modules_to_save.", ".original_module.")


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor of the base as the adapter makes it: `value` or the base's, plus scale·BA, plus scale·bias.

    `value`, `a`, `b` and `bias` name tensors of the adapter's file. `transposed`: the tensor stores BA turned round, as
    Conv1D and embeddings do.
    """

    info: TensorInfo
    module: str
    scale: float
    transposed: bool = False
    value: str | None = None
    a: str | None = None
    b: str | None = None
    bias: str | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter over a base: its changes by the checkpoint's names, and the files as they were looked at."""

    folder: Path
    base: ModelFolder
    changes: Mapping[str, Change] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)

    @property
    def path(self) -> Path:
        """The file of its tensors."""
        return self.folder / ADAPTER_FILE


def require_base_folder(adapter: Path, base_folder: Path | None) -> Path:
    """Return the folder of the base model that an adapter is added to.

    Raises:
        ConfigurationError: it is not known.
    """
    if base_folder is None:
        msg = f"{adapter} is an adapter, and its base model is nowhere; fetch it with `gramfuse project base pull`"
        raise ConfigurationError(msg)
    return base_folder


def open_adapter(folder: Path, base: Path) -> Adapter:
    """Read an adapter's configuration and header and hold them against the base's.

    Raises:
        FileUnreadableError, HeaderMalformedError, HeaderTooLargeError: a file; a pickle is never read.
        ConfigurationError: the adapter does more than add products of low rank.
        ArchitectureMismatchError: it does not fit the base.
    """
    from gramfuse.adapters.structure import read_structure  # noqa: PLC0415 - transformers is slow to import

    path = folder / ADAPTER_FILE
    if not path.is_file() and (folder / _PICKLE_FILE).is_file():
        msg = (
            f"{folder} holds {_PICKLE_FILE}, a pickle, which may run code when it is loaded and is never read: save "
            "the adapter with save_pretrained(folder, safe_serialization=True)"
        )
        raise FileUnreadableError(msg)
    config = read_adapter_config(folder)
    entries = read_header(path).tensors
    below = open_model_folder(base)
    changes = _changes(folder, config, entries, read_structure(base), below)
    if not changes:
        msg = f"{path} changes nothing: it holds no tensors"
        raise ArchitectureMismatchError(msg)
    files = (path, folder / ADAPTER_CONFIG_FILE, *(base / name for name in below.files))
    return Adapter(folder, below, changes, tuple(Source.of(file) for file in files))


def _changes(
    folder: Path, config: AdapterConfig, entries: Mapping[str, TensorEntry], structure: "Structure", base: ModelFolder
) -> dict[str, Change]:
    parts: dict[tuple[str, str], dict[Part, TensorEntry]] = {}
    for entry in entries.values():
        if (found := _read_key(folder, entry.name, entries)) is not None:
            module, parameter, part = found
            held = parts.setdefault((module, parameter), {})
            if part in held:
                msg = f"{folder} holds two tensors for one: {held[part].name} and {entry.name}"
                raise ArchitectureMismatchError(msg, tensor=entry.name)
            held[part] = entry
    changes: dict[str, Change] = {}
    for (module, parameter), held in sorted(parts.items()):
        change = _change(folder, config, structure, base, (module, parameter), held)
        if change.info.name in changes:
            msg = f"{folder} changes {change.info.name} twice"
            raise ArchitectureMismatchError(msg, tensor=change.info.name)
        changes[change.info.name] = change
    return changes


def _read_key(folder: Path, key: str, entries: Mapping[str, TensorEntry]) -> tuple[str, str, Part] | None:
    """Return the module, its parameter (with a dot) and what the tensor holds of it; None for a copy of another."""
    path = key.removeprefix(KEY_PREFIX)
    if path == key:
        msg = f"{folder}: tensor {key!r} is not named as PEFT names them ({KEY_PREFIX}…)"
        raise ArchitectureMismatchError(msg, tensor=key)
    for suffix, part, parameter in _SUFFIXES:
        if path.endswith(suffix):
            return path.removesuffix(suffix), parameter, part
    copy = next((infix for infix in _COPIES if infix in path), None)
    if copy is not None and KEY_PREFIX + path.replace(copy, ".") in entries:
        return None
    if copy is not None or "lora_" in path:
        msg = f"{folder}: tensor {key!r} is no part of a plain LoRA; {WAY_OUT}"
        raise ArchitectureMismatchError(msg, tensor=key)
    module, _, parameter = path.replace(".base_layer.", ".").rpartition(".")
    return module, f".{parameter}", "value"


def _change(
    folder: Path,
    config: AdapterConfig,
    structure: "Structure",
    base: ModelFolder,
    place: tuple[str, str],
    held: Mapping[Part, TensorEntry],
) -> Change:
    module, parameter = place
    path = f"{module}{parameter}".lstrip(".")
    # an adapter of another release of transformers may name modules as the checkpoint does
    name = structure.saved_as.get(path, path)
    stored = base.tensors.get(name)
    if stored is None:
        msg = (
            f"{folder} changes {path}, which the base model does not store: it is tied to another weight, or the "
            f"adapter belongs to another model; {WAY_OUT}"
        )
        raise ArchitectureMismatchError(msg, tensor=path)
    info = stored.info
    if any(entry.dtype not in FLOAT_DTYPES for entry in held.values()) or info.dtype not in FLOAT_DTYPES:
        msg = f"{folder}: what it holds of {path}, or the base's {name}, is not floating-point; {WAY_OUT}"
        raise ArchitectureMismatchError(msg, tensor=path)
    for entry in (held.get("value"), held.get("bias")):
        if entry is not None and entry.shape != info.shape:
            msg = (
                f"{folder}: {entry.name} is {list(entry.shape)}, the base's {name} is {list(info.shape)}; "
                "fine-tune the base that the project has, without resizing it"
            )
            raise ArchitectureMismatchError(msg, tensor=name)
    factors = (held.get("A"), held.get("B"))
    transposed = _require_factors(folder, config, structure, info, module, factors)
    names = {part: entry.name for part, entry in held.items()}
    return Change(
        info,
        module,
        scale=config.scale_of(module),
        transposed=transposed,
        value=names.get("value"),
        a=names.get("A"),
        b=names.get("B"),
        bias=names.get("bias"),
    )


def _require_factors(
    folder: Path,
    config: AdapterConfig,
    structure: "Structure",
    info: TensorInfo,
    module: str,
    factors: tuple[TensorEntry | None, TensorEntry | None],
) -> bool:
    """Require that A [r, in] and B [out, r] fit the weight; return whether it stores their product turned round."""
    a, b = factors
    if a is None and b is None:
        return False
    if a is None or b is None:
        msg = f"{folder} holds only one of the factors A and B of {module}; save the adapter again"
        raise ArchitectureMismatchError(msg, tensor=info.name)
    kind = structure.kinds.get(info.name, "other")
    if kind == "other" or len(info.shape) != 2:  # noqa: PLR2004 - a matrix
        msg = f"{folder} adapts {module}, which is no linear layer and no embedding of the base; {WAY_OUT}"
        raise ArchitectureMismatchError(msg, tensor=info.name)
    transposed = kind != "linear"
    outputs, inputs = reversed(info.shape) if transposed else info.shape
    rank = config.rank_of(module)
    if a.shape != (rank, inputs) or b.shape != (outputs, rank):
        msg = (
            f"{folder}: A and B of {module} are {list(a.shape)} and {list(b.shape)}; with rank {rank}, {info.name} of "
            f"the base takes {[rank, inputs]} and {[outputs, rank]}"
        )
        raise ArchitectureMismatchError(msg, tensor=info.name)
    return transposed
