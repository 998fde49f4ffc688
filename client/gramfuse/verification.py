"""Is this folder the model that a trusted server signed? Answered offline."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gramfuse import pinning
from gramfuse.companions import HEAD_NOTE_FILE
from gramfuse.config import Home
from gramfuse.contributing.loading import read_document
from gramfuse.identity import identity_path, load_identity
from gramfuse.trust import Trust
from gramfuse_shared import limits
from gramfuse_shared.contract.identity import ContributionStatement
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import (
    PUBLIC_KEY_BYTES,
    RECEIPT_FILE_NAME,
    SIGNATURE_BYTES,
    Receipt,
    SignedReceipt,
)
from gramfuse_shared.errors import DigestMismatchError, DocumentMalformedError, FileUnreadableError, ReceiptInvalidError
from gramfuse_shared.signatures import is_signed

_BLOCK_BYTES: Final = limits.MIB


Compared = Literal["own", "verified", "not compared", "not signed"]
"""Whose a contribution's signature is: this home's key's, one's that people compared, one's that they did not, none."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found out: the receipt, whose key signed it, how many bytes it covers, and who signed contributions."""

    receipt: Receipt
    signer: str
    files: int
    bytes: int
    contributions: Mapping[str, Compared]


def verify(
    folder: Path | str, *, trusted_keys: Mapping[str, str] | None = None, home: Home | None = None
) -> Verification:
    """Verify a pulled model without the server.

    Checked in this order:
      1. `receipt.json` is there and is a signed receipt,
      2. its key is trusted,
      3. the signature is right,
      4. every contribution is signed by its organization's identity key, and by no other than people compared,
      5. every file that it names is there with its length and digest,
      6. nothing else is there.

    Args:
        folder: the model's folder.
        trusted_keys: receipt keys (base64) to the name of their server; default: those pinned in the client's home.
        home: the client's home, for the default of `trusted_keys`.

    Raises:
        FileUnreadableError: the folder or a file is missing.
        ReceiptInvalidError: steps 1 to 4 and 6.
        DigestMismatchError: step 5.
    """
    folder = Path(folder)
    keys = pinning.all_keys(home or Home.default()) if trusted_keys is None else trusted_keys
    # 1.
    if (folder / HEAD_NOTE_FILE).exists() and not (folder / RECEIPT_FILE_NAME).exists():
        msg = (
            f"{folder} holds a head of your own ({HEAD_NOTE_FILE}), so no server signed it; verify the merged model's "
            "folder, from which it was made"
        )
        raise FileUnreadableError(msg)
    if folder.is_dir() and not (folder / RECEIPT_FILE_NAME).exists():
        msg = f"{folder} holds no {RECEIPT_FILE_NAME}, so it is not a folder that `gramfuse model pull` wrote"
        raise FileUnreadableError(msg)
    try:
        signed = SignedReceipt.parse(read_document(folder / RECEIPT_FILE_NAME))
    except DocumentMalformedError as error:
        msg = f"{folder / RECEIPT_FILE_NAME} is not a signed receipt: {error.message}"
        raise ReceiptInvalidError(msg) from error
    # 2. and 3.
    signer = require_signed(signed, keys)
    # 4.
    compared = require_statements(signed.receipt, home or Home.default(), signer)
    # 5. and 6.
    require_files(folder, signed.receipt)
    outputs = signed.receipt.outputs
    return Verification(signed.receipt, signer, len(outputs), sum(entry.bytes for entry in outputs), compared)


def require_statements(receipt: Receipt, home: Home, server: str) -> dict[str, Compared]:
    """Require that contributions were signed by those whose they are; say whose keys people compared.

    A contribution without a signature is one of before there were any, or a server's that left it out: it is told.

    Raises:
        ReceiptInvalidError: a signature is wrong, or of another key than the one that people compared or one's own.
    """
    known = Trust.of(home, server, receipt.project).known.identities
    own = load_identity(home).public if identity_path(home).exists() else None
    found: dict[str, Compared] = {}
    for member in receipt.contributions:
        if member.identity is None or member.signature is None:
            found[member.organization] = "not signed"
            continue
        statement = ContributionStatement(
            project=receipt.project,
            organization=member.organization,
            policy=receipt.policy,
            manifest=member.manifest,
            identity=member.identity,
        )
        if not is_signed(statement, member.signature, member.identity):
            msg = f"the contribution of {member.organization} in the receipt is not signed by the key that it names"
            raise ReceiptInvalidError(msg, organization=member.organization)
        expected = known.get(member.organization)
        if expected not in {None, member.identity}:
            msg = (
                f"the contribution of {member.organization} is signed by another identity key than the one that you "
                "verified; ask its people, and do not use the model"
            )
            raise ReceiptInvalidError(msg, organization=member.organization)
        if member.identity == own:
            found[member.organization] = "own"
        else:
            found[member.organization] = "not compared" if expected is None else "verified"
    return found


def require_signed(signed: SignedReceipt, trusted_keys: Mapping[str, str]) -> str:
    """Require that a trusted key signed the receipt; return the name of its server.

    Raises:
        ReceiptInvalidError: the key is not trusted, or the signature is wrong.
    """
    signer = trusted_keys.get(signed.public_key)
    if signer is None:
        msg = "the receipt is signed by a key that is not pinned here: sign in to its server, or give its key"
        raise ReceiptInvalidError(msg, public_key=signed.public_key)
    try:
        key = base64.b64decode(signed.public_key, validate=True)
        signature = base64.b64decode(signed.signature, validate=True)
    except binascii.Error as error:
        msg = "the receipt's key or signature is not base64"
        raise ReceiptInvalidError(msg) from error
    if len(key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        msg = "the receipt's key or signature has a wrong length"
        raise ReceiptInvalidError(msg)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed.receipt.canonical())
    except InvalidSignature as error:
        msg = "the receipt's signature is wrong: the receipt was altered, or another key signed it"
        raise ReceiptInvalidError(msg) from error
    return signer


def require_files(folder: Path, receipt: Receipt) -> None:
    """Require that a folder holds just the receipt's files, unaltered.

    Raises:
        FileUnreadableError: a file is missing or cannot be read.
        DigestMismatchError: a file has another length or digest.
        ReceiptInvalidError: something is there that the receipt does not name.
    """
    names = {entry.name for entry in receipt.outputs} | {RECEIPT_FILE_NAME}
    try:
        for entry in receipt.outputs:
            _require_file(folder / entry.name, entry)
        spare = sorted(path.name for path in folder.iterdir() if path.name not in names)
    except OSError as error:
        msg = f"{error.filename or folder} cannot be read: {error.strerror}"
        raise FileUnreadableError(msg) from error
    if spare:
        msg = f"the receipt does not name {', '.join(spare[:5])}{' and more' if len(spare) > 5 else ''}"  # noqa: PLR2004
        raise ReceiptInvalidError(msg, spare=spare[:100])


def _require_file(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        msg = f"{path} is missing, or is not a regular file; remove the folder and pull the model again"
        raise FileUnreadableError(msg)
    digest = hashlib.sha256()
    length = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            length += len(block)
    if length != entry.bytes or digest.hexdigest() != entry.sha256:
        msg = (
            f"{path} was altered: {length} bytes with SHA-256 {digest.hexdigest()}, the receipt says {entry.bytes} "
            f"bytes with {entry.sha256}; remove the folder and pull the model again"
        )
        raise DigestMismatchError(msg, file=entry.name, expected=entry.sha256, found=digest.hexdigest())
