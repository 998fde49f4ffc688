"""Write a personal model: an organization's own head on a merged trunk, in a folder of its own.

The verified merged folder stays as it is, so that its receipt goes on to verify. The personal folder holds no receipt,
because no server signed it; its note says which parameters are the organization's own and where the trunk came from.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from gramfuse.companions import HEAD_NOTE_FILE, companion_files
from gramfuse.complete_folder import complete_folder
from gramfuse.config import Home
from gramfuse.contributing.loading import SINGLE_FILE, ModelFolder, open_model_folder, read_document, read_json_object
from gramfuse.contributing.virtual_files import Source, Span, VirtualFile
from gramfuse.heads.planning import HeadPlan, plan_head, require_same_computation
from gramfuse.progress import ReadCount
from gramfuse.verification import verify
from gramfuse.whole_files import open_for_owner
from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import FileEntry, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME, Receipt
from gramfuse_shared.contract.rules import vocabulary_size
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, format_header
from gramfuse_shared.digest import sha256_hex, sha256_hex_of_chunks
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    DocumentMalformedError,
    FileUnreadableError,
    PolicyViolationError,
)
from gramfuse_shared.identifiers import Digest, TensorName

CONFIG_FILE: Final = "config.json"
_METADATA: Final = {"format": "pt"}  # transformers refuses a file without it

OnBytes = Callable[[int, int], None]
"""Called with the bytes done so far and in all."""


class HeadNote(Document):
    """What a personal model is made of. A function of its inputs alone: the same inputs, the same note.

    `merged` names the merged model (`<project>/<job>`) where it has a receipt, whose SHA-256 is `receipt`.
    """

    format: Literal["gramfuse/personal-model/1"] = "gramfuse/personal-model/1"
    merged: str | None = None
    receipt: Digest | None = None
    own: Annotated[tuple[TensorName, ...], Field(min_length=1, max_length=limits.MAX_TENSORS_PER_FILE)]
    files: Annotated[tuple[FileEntry, ...], Field(min_length=1, max_length=limits.MAX_FILES_PER_UPLOAD)]


@dataclass(frozen=True, slots=True)
class PersonalModel:
    """A written personal model: its folder, where each parameter came from, and the bytes of its weights."""

    path: Path
    plan: HeadPlan
    bytes: int


@dataclass(frozen=True, slots=True)
class _Parts:
    """Everything that a personal model will hold, none of it written yet."""

    plan: HeadPlan
    merged: str | None
    receipt: str | None
    weights: VirtualFile
    companions: Mapping[str, bytes]

    def note(self, weights_digest: str) -> HeadNote:
        entries = [{"name": SINGLE_FILE, "bytes": self.weights.length, "sha256": weights_digest}]
        entries += [
            {"name": name, "bytes": len(content), "sha256": sha256_hex(content)}
            for name, content in sorted(self.companions.items())
        ]
        return HeadNote.model_validate(
            {"merged": self.merged, "receipt": self.receipt, "own": self.plan.own, "files": entries}
        )


def attach_head(
    merged: str | Path,
    head_from: str | Path,
    out: str | Path,
    *,
    policy: Policy | None = None,
    trusted_keys: Mapping[str, str] | None = None,
    home: Home | None = None,
    overwrite: bool = False,
    on_progress: OnBytes = lambda _done, _total: None,
) -> PersonalModel:
    """Write the merged model with the organization's own head into a folder that `from_pretrained` loads.

    The folder has the parameters of the organization's model, bit by bit: those of its head its own, the others the
    merged model's. `config.json` is its own too, so that the task (class, labels) may be another than the merged
    model's; the tokenizer is the merged model's. Nothing is computed and nothing leaves this machine.

    Before a byte is written:
      1. a merged folder with a receipt is verified,
      2. the policy is the receipt's: it says which parameters are a head's,
      3. the two trunks are of one architecture.
    The folder appears when it is complete. Running it again on the same inputs leaves the folder as it is.

    Args:
        merged: a pulled model's folder, or one that `merge` wrote (which has no receipt to verify).
        head_from: the organization's own fine-tuned `from_pretrained` folder.
        out: the folder to write.
        policy: the project's policy; default: the default policy.
        trusted_keys: as for `verify`.
        home: as for `verify`.
        overwrite: replace `out` where an earlier call wrote it from other inputs.
        on_progress: called with the bytes of weights written so far and in all.

    Raises:
        ReceiptInvalidError, DigestMismatchError: step 1.
        PolicyViolationError: step 2.
        ArchitectureMismatchError: step 3.
        ConflictError: `out` holds something else.
        FileUnreadableError, HeaderMalformedError, HeaderTooLargeError: an input.
        FileUnwritableError: the disk is full or not writable.
    """
    trunk, own, target = Path(merged), Path(head_from), Path(out)
    rules = policy or Policy()
    receipt: Receipt | None = None
    if (trunk / RECEIPT_FILE_NAME).exists():
        # 1.
        receipt = verify(trunk, trusted_keys=trusted_keys, home=home).receipt
        # 2.
        _require_policy_of(receipt, rules)
    # 3.
    parts = _plan_parts(trunk, own, rules, receipt)
    count = ReadCount(parts.weights.length, on_progress)
    if _is_there(target, parts, overwrite=overwrite):
        return PersonalModel(target, parts.plan, parts.weights.length)
    with complete_folder(target) as beside:
        for name, content in parts.companions.items():
            _write(beside / name, [content])
        digest = _write(beside / SINGLE_FILE, parts.weights.chunks(), count.add)
        _write(beside / HEAD_NOTE_FILE, [parts.note(digest).canonical() + b"\n"])
    return PersonalModel(target, parts.plan, parts.weights.length)


def _require_policy_of(receipt: Receipt, policy: Policy) -> None:
    if policy.content_digest() != receipt.policy.digest:
        msg = (
            f"{receipt.project}/{receipt.model} was merged under version {receipt.policy.version} of its project's "
            "policy, which says what a head is; give that policy"
        )
        raise PolicyViolationError(msg, version=receipt.policy.version, digest=receipt.policy.digest)


def _plan_parts(merged: Path, own: Path, policy: Policy, receipt: Receipt | None) -> _Parts:
    trunk_folder, own_folder = open_model_folder(merged), open_model_folder(own)
    for folder in (trunk_folder, own_folder):
        if folder.encoding != "stored":
            msg = f"{folder.path} holds differences from a base model; give the folder of the whole model"
            raise ArchitectureMismatchError(msg)
    trunk_config, own_config = (read_json_object(folder / CONFIG_FILE) for folder in (merged, own))
    require_same_computation(trunk_config, own_config)
    plan = plan_head(_infos(trunk_folder), _infos(own_folder), policy, vocabulary_size(trunk_config))
    companions = {path.name: read_document(path) for path in companion_files(merged)}
    companions[CONFIG_FILE] = read_document(own / CONFIG_FILE)
    return _Parts(
        plan=plan,
        merged=None if receipt is None else f"{receipt.project}/{receipt.model}",
        receipt=None if receipt is None else sha256_hex(read_document(merged / RECEIPT_FILE_NAME)),
        weights=_weights(plan, trunk_folder, own_folder),
        companions=companions,
    )


def _weights(plan: HeadPlan, merged: ModelFolder, own: ModelFolder) -> VirtualFile:
    """Present the parameters as one safetensors file, made of ranges of the two models' own files."""
    tensors = [merged.tensors[name] for name in plan.merged] + [own.tensors[name] for name in plan.own]
    tensors.sort(key=lambda tensor: (-DTYPE_BYTES[tensor.info.dtype], tensor.info.name))  # keeps every tensor aligned
    header = format_header([(t.info.name, t.info.dtype, t.info.shape) for t in tensors], _METADATA)
    look = cache(Source.of)
    return VirtualFile(SINGLE_FILE, header, [Span(look(t.path), t.start, t.end) for t in tensors])


def _is_there(target: Path, parts: _Parts, *, overwrite: bool) -> bool:
    """Tell whether the target is this very personal model.

    Raises:
        ConflictError: it holds something else, which `overwrite` does not give up or may not.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not (target / HEAD_NOTE_FILE).is_file():
        msg = f"{target} holds no {HEAD_NOTE_FILE}, so it is not replaced; choose another folder"
        raise ConflictError(msg)
    if overwrite:
        return False
    if _read_note(target) == parts.note(parts.weights.digest()) and _is_whole(target):
        return True
    msg = f"{target} is a personal model of other inputs, or was changed; choose another folder, or --overwrite it"
    raise ConflictError(msg)


def _read_note(folder: Path) -> HeadNote | None:
    try:
        return HeadNote.parse(read_document(folder / HEAD_NOTE_FILE))
    except DocumentMalformedError:
        return None


def _is_whole(folder: Path) -> bool:
    note = _read_note(folder)
    try:
        return note is not None and all(
            sha256_hex_of_chunks(VirtualFile.of_path(folder / entry.name).chunks()) == entry.sha256
            for entry in note.files
        )
    except FileUnreadableError:
        return False


def _write(path: Path, chunks: Iterable[bytes], on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Write a file, for its owner only, to the disk itself, not only to its cache; return the SHA-256."""
    digest = hashlib.sha256()
    with open_for_owner(path) as stream:
        for chunk in chunks:
            stream.write(chunk)
            digest.update(chunk)
            on_bytes(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _infos(folder: ModelFolder) -> dict[str, TensorInfo]:
    return {name: tensor.info for name, tensor in folder.tensors.items()}
