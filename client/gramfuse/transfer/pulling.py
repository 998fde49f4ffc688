"""Fetch a base model by its fingerprint, its scales by their digest, or a merged model by its signed receipt."""

from collections.abc import Mapping
from pathlib import Path

from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.progress import OnProgress
from gramfuse.transfer import downloads
from gramfuse.transfer.transport import Transport
from gramfuse.verification import require_signed, verify
from gramfuse_shared.contract.http_api import Model, Project
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME
from gramfuse_shared.errors import (
    ConflictError,
    DigestMismatchError,
    GramfuseError,
    NotFoundError,
    ReceiptInvalidError,
    StateError,
)


def pull_base(
    transport: Transport,
    project: Project,
    manifest: BaseManifest,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
) -> None:
    """Fetch a base model into a new folder; one that is there already is left as it is.

    Raises:
        DigestMismatchError: the manifest is not the project's, or bytes are not what it says.
        ConflictError: the folder holds something else.
    """
    if manifest.content_digest() != project.base:
        msg = f"the base model's manifest does not have the project's fingerprint {project.base}"
        raise DigestMismatchError(msg)
    try:
        downloads.require_new(folder)
    except ConflictError:
        if _is_base(folder, manifest):
            return
        raise
    downloads.pull_folder(
        transport, f"v1/projects/{project.id}/base/files", manifest.files, folder, on_progress=on_progress
    )


def pull_scales(
    transport: Transport, project: Project, policy: Policy, folder: Path, *, on_progress: OnProgress | None = None
) -> Path:
    """Fetch a project's scales file into a folder, under its digest; return its path. One that is there is checked.

    Raises:
        NotFoundError: the policy names none.
        DigestMismatchError: the server announces another than the policy names, or its bytes are others.
    """
    if policy.scales is None:
        msg = f"the policy of {project.id} names no scales file; a coordinator sends one with `project create --scales`"
        raise NotFoundError(msg)
    entry = next((file for file in project.files if file.name == SCALES_FILE_NAME), None)
    if entry is None or entry.sha256 != policy.scales:
        msg = f"the server's scales file of {project.id} is not the one that its policy names, {policy.scales}"
        raise DigestMismatchError(msg)
    target = folder / policy.scales
    if target.exists() and downloads.is_intact(target, entry):
        return target / entry.name
    if target.exists():
        (target / entry.name).unlink(missing_ok=True)  # damaged since it was fetched
    files = f"v1/projects/{project.id}/base/files"
    downloads.pull_folder(transport, files, [entry], target, on_progress=on_progress)
    return target / entry.name


def pull_model(
    transport: Transport,
    model: Model,
    folder: Path,
    *,
    trusted_keys: Mapping[str, str],
    on_progress: OnProgress | None = None,
) -> None:
    """Fetch a merged model into a new folder; the same model there already is verified and left as it is.

    Before a byte of a file is fetched:
      1. a trusted key signed the receipt,
      2. the receipt speaks of this model and of these files.
    Then each file's length and digest, and only then the rename.

    Raises:
        StateError: the model was deleted.
        ReceiptInvalidError: steps 1 and 2.
        DigestMismatchError: a file's bytes are not what the receipt says.
        ConflictError: the folder holds something else.
    """
    if model.deleted_at is not None:
        msg = f"model {model.id} was deleted on {model.deleted_at:%Y-%m-%d}; its receipt remains"
        raise StateError(msg)
    # 1.
    receipt = model.receipt.receipt
    require_signed(model.receipt, trusted_keys)
    # 2.
    if (receipt.project, receipt.model) != (model.project, model.id):
        msg = f"the receipt speaks of {receipt.project}/{receipt.model}, not of {model.project}/{model.id}"
        raise ReceiptInvalidError(msg)
    if {entry for entry in model.files if entry.name != RECEIPT_FILE_NAME} != set(receipt.outputs):
        msg = f"the files of model {model.id} are not those of its receipt"
        raise ReceiptInvalidError(msg)
    try:
        downloads.require_new(folder)
    except ConflictError:
        if _is_model(folder, model, trusted_keys):
            return
        raise

    def add_receipt(partial: Path) -> None:
        (partial / RECEIPT_FILE_NAME).write_bytes(model.receipt.canonical() + b"\n")

    downloads.pull_folder(
        transport,
        f"v1/projects/{model.project}/models/{model.id}/files",
        receipt.outputs,
        folder,
        finish=add_receipt,
        on_progress=on_progress,
    )


def _is_base(folder: Path, manifest: BaseManifest) -> bool:
    try:
        return build_base_manifest(folder) == manifest
    except GramfuseError:  # it is no base model at all; the caller reports that the folder is taken
        return False


def _is_model(folder: Path, model: Model, trusted_keys: Mapping[str, str]) -> bool:
    """Tell whether a folder holds this model; a damaged one is reported as such.

    Raises:
        DigestMismatchError, ReceiptInvalidError, FileUnreadableError: it holds this model's receipt, but not its files.
    """
    path = folder / RECEIPT_FILE_NAME
    if not path.is_file() or path.read_bytes() != model.receipt.canonical() + b"\n":
        return False
    verify(folder, trusted_keys=trusted_keys)
    return True
