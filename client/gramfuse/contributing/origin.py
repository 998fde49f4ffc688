"""Which model something was measured on: noted in its file for this machine alone, and compared before a push.

The note is a digest of the files of the weights. It stands under a key of its own, which no file that leaves has: those
get a header of their own, with the metadata of the contract and nothing else.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gramfuse.contributing.loading import (
    ADAPTER_FILE,
    DIFFERENCES_FILE,
    is_adapter,
    read_header,
    weight_file_names,
)
from gramfuse.contributing.virtual_files import VirtualFile
from gramfuse_shared.digest import document_digest
from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.identifiers import DIGEST_PATTERN, Digest

ORIGIN_KEY: Final = "gramfuse.measured_on"


def files_of_weights(folder: Path) -> tuple[str, ...]:
    """Name the files that hold a model's own weights: whole ones, differences from a base, or an adapter's factors.

    Raises:
        FileUnreadableError: there are none.
    """
    if (folder / DIFFERENCES_FILE).is_file():
        return (DIFFERENCES_FILE,)
    return (ADAPTER_FILE,) if is_adapter(folder) else weight_file_names(folder)


def digest_of_weights(folder: Path, known: Mapping[str, Digest] | None = None) -> Digest:
    """Return what a model's weights are known again by, from the digests of its files where they are `known`.

    Raises:
        FileUnreadableError: there are none, or one cannot be read.
    """
    names = files_of_weights(folder)
    found = known or {name: VirtualFile.of_path(folder / name).digest() for name in names}
    return document_digest({name: found[name] for name in names})


def note_of(measured_on: Digest | None) -> dict[str, str]:
    """Return what a file's metadata says of the model; nothing where it is not known."""
    return {} if measured_on is None else {ORIGIN_KEY: measured_on}


def read_origin(path: Path) -> Digest | None:
    """Return the note of a file; None where there is none.

    Raises:
        FileUnreadableError, HeaderMalformedError, HeaderTooLargeError: it is no safetensors file.
    """
    noted = read_header(path).metadata.get(ORIGIN_KEY)
    return noted if noted is not None and re.fullmatch(DIGEST_PATTERN, noted) else None


def require_same_model(measured: Path, model: Path, weights: Digest) -> None:
    """Require that a file was measured on a model, by the digest of its weights; one without a note may have been.

    Raises:
        ArchitectureMismatchError: it was measured on another, or on the same before it was trained on.
    """
    noted = read_origin(measured)
    if noted is not None and noted != weights:
        msg = (
            f"{measured} was measured on a model with other weights than {model}: take that model, or measure this one "
            "with `gramfuse stats collect`"
        )
        raise ArchitectureMismatchError(msg)
