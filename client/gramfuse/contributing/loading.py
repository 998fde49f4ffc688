"""What a model folder and a statistics file hold, read from their headers alone: no tensor is loaded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gramfuse.contributing.virtual_files import Readable, Source, Span, VirtualFile
from gramfuse_shared import limits
from gramfuse_shared.contract.fisher_file import FisherMetadata, parse_fisher_metadata
from gramfuse_shared.contract.manifest import LeftOut, TensorInfo, WeightsEncoding
from gramfuse_shared.contract.safetensors_header import (
    LENGTH_BYTES,
    Header,
    TensorEntry,
    parse_header,
    parse_header_length,
)
from gramfuse_shared.contract.statistics_file import StatisticsMetadata, parse_statistics_metadata
from gramfuse_shared.errors import (
    FileUnreadableError,
    GramfuseError,
    HeaderMalformedError,
    StatisticsMalformedError,
    TooLargeError,
)
from gramfuse_shared.identifiers import is_file_name

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
DIFFERENCES_FILE: Final = "differences.safetensors"
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_FILE: Final = "adapter_model.safetensors"
BASE_KEY: Final = "gramfuse.base"
"""In the metadata of a file of differences: the fingerprint of the base model that they are to be added to."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and where its bytes lie."""

    info: TensorInfo
    source: Readable
    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start

    @property
    def path(self) -> Path:
        """The file that holds it, or that it is computed from."""
        return self.source.path

    @property
    def span(self) -> Span:
        """Its bytes, for a file that is sent."""
        return Span(self.source, self.start, self.end)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A `from_pretrained` folder: its tensors by name, over all shards, and the files that hold them.

    Or a folder of `gramfuse contribution compress`: differences from the base model whose fingerprint is `base`. Or an
    adapter: `tensors` are those that it changes, `left_out` says that the others are the base's own.
    """

    path: Path
    files: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    encoding: WeightsEncoding = "stored"
    base: str | None = None
    left_out: LeftOut = "unknown"


@dataclass(frozen=True, slots=True)
class StatisticsFile:
    """A statistics file: what its tensors mean, and where their bytes lie."""

    path: Path
    metadata: StatisticsMetadata
    tensors: Mapping[str, TensorEntry]


@dataclass(frozen=True, slots=True)
class FisherFile:
    """A file of Fisher information: what its tensors are of, and where their bytes lie."""

    path: Path
    metadata: FisherMetadata
    tensors: Mapping[str, TensorEntry]


def open_model_folder(folder: Path) -> ModelFolder:
    """Read the headers of a folder's safetensors files, single or sharded.

    Raises:
        FileUnreadableError: no safetensors checkpoint, or a shard is missing.
        HeaderMalformedError, HeaderTooLargeError: a header breaks the format, or two shards hold one tensor.
    """
    if (folder / DIFFERENCES_FILE).is_file():
        return _open_differences(folder)
    names = weight_file_names(folder)
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        header, source = read_header(folder / name), Source.of(folder / name)
        for entry in header.tensors.values():
            if entry.name in tensors:
                other = tensors[entry.name].source.path.name
                msg = f"{folder}: tensor {entry.name!r} lies in two files, {other} and {name}"
                raise HeaderMalformedError(msg)
            tensors[entry.name] = StoredTensor(tensor_info(entry), source, entry.start, entry.end)
    return ModelFolder(folder, names, MappingProxyType(tensors))


def _open_differences(folder: Path) -> ModelFolder:
    path = folder / DIFFERENCES_FILE
    header, source = read_header(path), Source.of(path)
    tensors = {
        entry.name: StoredTensor(tensor_info(entry), source, entry.start, entry.end)
        for entry in header.tensors.values()
    }
    return ModelFolder(
        folder, (DIFFERENCES_FILE,), MappingProxyType(tensors), "bf16-delta", header.metadata.get(BASE_KEY)
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have what is wrong with a file's metadata told with the file's name."""
    try:
        yield
    except StatisticsMalformedError as error:
        msg = f"{path}: {error.message}"
        raise StatisticsMalformedError(msg, **error.facts) from error


def open_statistics_file(path: Path) -> StatisticsFile:
    """Read the header and the metadata of a statistics file.

    Raises:
        FileUnreadableError: it is missing or cannot be read.
        HeaderMalformedError, HeaderTooLargeError, StatisticsMalformedError: it is not a statistics file.
    """
    header = read_header(path)
    with _naming(path):
        return StatisticsFile(path, parse_statistics_metadata(header), header.tensors)


def open_fisher_file(path: Path) -> FisherFile:
    """Read the header and the metadata of a file of Fisher information.

    Raises:
        FileUnreadableError: it is missing or cannot be read.
        HeaderMalformedError, HeaderTooLargeError, StatisticsMalformedError: it is not such a file.
    """
    header = read_header(path)
    with _naming(path):
        return FisherFile(path, parse_fisher_metadata(header), header.tensors)


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder is a PEFT adapter, to be added to a base model.

    Raises:
        FileUnreadableError: it holds a whole model besides, so what is meant cannot be known.
    """
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return False
    whole = [name for name in (SINGLE_FILE, INDEX_FILE, DIFFERENCES_FILE) if (folder / name).is_file()]
    if whole:
        msg = f"{folder} holds {whole[0]} and {ADAPTER_CONFIG_FILE}: keep model and adapter in folders of their own"
        raise FileUnreadableError(msg)
    return True


def weight_file_names(folder: Path) -> tuple[str, ...]:
    """Name the safetensors files that `from_pretrained` would load from the folder.

    Raises:
        FileUnreadableError: there are none.
    """
    if not folder.is_dir():
        msg = f"{folder} is not a folder"
        raise FileUnreadableError(msg)
    if (folder / SINGLE_FILE).is_file():
        return (SINGLE_FILE,)
    if (folder / INDEX_FILE).is_file():
        return _shards_of_index(folder / INDEX_FILE)
    if is_adapter(folder):
        msg = f"{folder} is an adapter, and this takes a whole model; `gramfuse merge` makes one of it and its base"
        raise FileUnreadableError(msg)
    msg = f"{folder} holds no {SINGLE_FILE} (and no index of shards): save the model with save_pretrained(folder)"
    raise FileUnreadableError(msg)


def content_of(tensor: StoredTensor) -> VirtualFile:
    """Present a tensor's bytes alone, without a header."""
    return VirtualFile(tensor.info.name, b"", [tensor.span])


def read_header(path: Path) -> Header:
    """Read and parse the header of a safetensors file.

    Raises:
        FileUnreadableError: it is missing or cannot be read.
        HeaderMalformedError, HeaderTooLargeError: its header breaks the format.
    """
    try:
        with path.open("rb") as stream:
            prefix = stream.read(LENGTH_BYTES)
            length = parse_header_length(prefix)
            return parse_header(prefix + stream.read(length), path.stat().st_size)
    except OSError as error:
        raise FileUnreadableError(_why_unreadable(path, error)) from error
    except GramfuseError as error:
        raise type(error)(f"{path}: {error.message}", **error.facts) from error


def read_document(path: Path, *, most_bytes: int = limits.MAX_DOCUMENT_BYTES) -> bytes:
    """Read a small file whole.

    Raises:
        FileUnreadableError: it is missing or cannot be read.
        TooLargeError: it is over the limit.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except OSError as error:
        raise FileUnreadableError(_why_unreadable(path, error)) from error
    if len(content) > most_bytes:
        msg = f"{path} is larger than {most_bytes} bytes"
        raise TooLargeError(msg)
    return content


def _why_unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, NotADirectoryError) and path.parent.is_file():
        return f"{path.parent} is a file, and a folder is wanted: one that holds {path.name}"
    return f"{path} cannot be read: {error.strerror}"


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        FileUnreadableError: it is missing, cannot be read, or holds no JSON object.
        TooLargeError: it is over the limit.
    """
    try:
        document = json.loads(read_document(path))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not JSON: {error}"
        raise FileUnreadableError(msg) from error
    if not isinstance(document, dict):
        msg = f"{path} does not hold a JSON object"
        raise FileUnreadableError(msg)
    return document


def tensor_info(entry: TensorEntry) -> TensorInfo:
    """Describe a tensor of a header as a manifest does."""
    return TensorInfo.model_validate({"name": entry.name, "dtype": entry.dtype, "shape": entry.shape})


def _shards_of_index(index: Path) -> tuple[str, ...]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        msg = f"{index} holds no weight_map"
        raise FileUnreadableError(msg)
    names = {name for name in weight_map.values() if isinstance(name, str) and is_file_name(name)}
    if len(names) != len(set(map(str, weight_map.values()))) or not all(
        name.endswith(".safetensors") for name in names
    ):
        msg = f"{index} names files that are not shards beside it"
        raise FileUnreadableError(msg)
    return tuple(sorted(names))
