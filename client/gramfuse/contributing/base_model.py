"""The base model of a project: which files of a folder make it, and its manifest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gramfuse.contributing.loading import INDEX_FILE, SINGLE_FILE, read_header, read_json_object, weight_file_names
from gramfuse.contributing.virtual_files import VirtualFile
from gramfuse_shared import limits
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.manifest import BaseManifest, tensors_of
from gramfuse_shared.contract.rules import CODE_SUFFIXES, PICKLE_SUFFIXES, require_base, vocabulary_size
from gramfuse_shared.errors import (
    DocumentMalformedError,
    FileUnreadableError,
    PolicyViolationError,
    TooLargeError,
)
from gramfuse_shared.identifiers import is_file_name


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """A folder as a base model: its manifest, its files ready to be sent, and what stays out of it."""

    manifest: BaseManifest
    files: tuple[VirtualFile, ...]
    left_out: tuple[str, ...]


def build_base_manifest(folder: Path | str, on_bytes: Callable[[int], None] | None = None) -> BaseManifest:
    """Describe a `from_pretrained` folder as the base model of a project; see `open_base_folder`."""
    return open_base_folder(Path(folder), on_bytes).manifest


def open_base_folder(
    folder: Path, on_bytes: Callable[[int], None] | None = None, *, part_bytes: int | None = None
) -> BaseFolder:
    """Describe a task-ready `from_pretrained` folder: every file directly in it, sorted by name, with digests.

    Subfolders, hidden files and safetensors files that `from_pretrained` does not load stay out. With `part_bytes`,
    the files know the digests of their parts, too, and can be sent without being hashed again.

    Raises:
        FileUnreadableError: no checkpoint, no config.json, an unreadable file, or a link that leads out of the folder.
        PolicyViolationError: pickles or program code, which would run on the participants' machines.
        TooLargeError: too many or too large files.
        HeaderMalformedError, HeaderTooLargeError: a safetensors header breaks the format.
    """
    folder = folder.resolve()
    weights = weight_file_names(folder)
    if not (folder / "config.json").is_file():
        msg = f"{folder} holds no config.json: save the model with save_pretrained(folder)"
        raise FileUnreadableError(msg)
    names, left_out = _choose(folder, weights)
    if len(names) > limits.MAX_FILES_PER_UPLOAD:
        msg = f"{folder} holds {len(names)} files; at most {limits.MAX_FILES_PER_UPLOAD} make a base model"
        raise TooLargeError(msg)
    files = tuple(VirtualFile.of_path(folder / name) for name in names)
    entries = [
        _entry(file, _tensors(folder, file.name), file.digest(on_bytes, part_bytes=part_bytes)) for file in files
    ]
    document = {"files": entries, "vocabulary_size": vocabulary_size(read_json_object(folder / "config.json"))}
    try:
        manifest = BaseManifest.model_validate(document)
    except ValidationError as error:
        raise DocumentMalformedError(describe_validation(str(folder), error.errors())) from error
    require_base(manifest)  # the server's own rules, before anything leaves
    return BaseFolder(manifest, files, left_out)


def _choose(folder: Path, weights: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    names, left_out = [], []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = path.name
        if path.is_symlink() and not path.resolve().is_relative_to(folder):
            msg = f"{path} is a link out of the folder; copy the file itself into {folder}"
            raise FileUnreadableError(msg)
        if path.is_dir() or name.startswith("."):
            left_out.append(f"{name}{'/' if path.is_dir() else ''}")
        elif name not in weights and (path.suffix == ".safetensors" or (name == INDEX_FILE and SINGLE_FILE in weights)):
            left_out.append(name)  # from_pretrained would not load it
        else:
            _require_harmless(path)
            names.append(name)
    return names, tuple(left_out)


def _require_harmless(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        msg = f"{path.name} may hold pickled objects, which run code when loaded: remove it; only safetensors is used"
        raise PolicyViolationError(msg, file=path.name)
    if suffix in CODE_SUFFIXES:
        msg = f"{path.name} is program code: a base model is configuration, tokenizer and safetensors only; remove it"
        raise PolicyViolationError(msg, file=path.name)
    if not is_file_name(path.name):
        msg = f"{path.name!r} cannot travel: a file's name has letters, digits, '.', '_' and '-', 128 at most"
        raise FileUnreadableError(msg)
    if not path.is_file():
        msg = f"{path} is not a regular file"
        raise FileUnreadableError(msg)
    size = path.stat().st_size
    if size > limits.MAX_FILE_BYTES:
        msg = f"{path.name} has {size} bytes; at most {limits.MAX_FILE_BYTES} are taken"
        raise TooLargeError(msg)
    if size == 0:
        msg = f"{path.name} is empty; remove it"
        raise FileUnreadableError(msg)


def _tensors(folder: Path, name: str) -> list[dict[str, Any]] | None:
    if not name.endswith(".safetensors"):
        return None
    return [tensor.model_dump() for tensor in tensors_of(read_header(folder / name))]


def _entry(file: VirtualFile, tensors: list[dict[str, Any]] | None, digest: str) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.length, "sha256": digest, "tensors": tensors}
