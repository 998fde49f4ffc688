"""Files that an earlier model has in common with a new one are taken from the disk instead of being fetched."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gramfuse.transfer.downloads import partial_folder
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME, SignedReceipt
from gramfuse_shared.errors import DocumentMalformedError


def take_known_files(folder: Path, entries: Sequence[FileEntry], earlier: Iterable[Path]) -> None:
    """Put files of earlier models where `pull_folder` finds what an interrupted download of `folder` left.

    It checks length and digest of each there, so what a receipt here says wrongly costs time alone. Files are linked
    where the disk can, so they must not be written into: this is for folders that nobody else uses.

    Args:
        folder: where the new model will be pulled to.
        entries: its files.
        earlier: folders of pulled models.
    """
    known = _files_of(earlier)
    partial = partial_folder(folder)
    for entry in entries:
        found = known.get(entry.sha256)
        target = partial / entry.name
        if found is None or folder.exists() or target.exists():
            continue
        try:
            partial.mkdir(parents=True, exist_ok=True)
            _link_or_copy(found, target)
        except OSError:  # then it is fetched
            target.unlink(missing_ok=True)


def _files_of(folders: Iterable[Path]) -> Mapping[str, Path]:
    files: dict[str, Path] = {}
    for folder in folders:
        try:
            receipt = SignedReceipt.parse((folder / RECEIPT_FILE_NAME).read_bytes()).receipt
        except (OSError, DocumentMalformedError):
            continue
        files.update({entry.sha256: folder / entry.name for entry in receipt.outputs})
    return files


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
