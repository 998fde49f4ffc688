"""Which receipt key a database belongs to, and whether it is the one that is here.

The database says it: by what the audit log has of the key, or, where that names none, by the newest receipt. Another
key beside it would sign receipts that no client accepts.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.receipt_key import ReceiptKeys, create_key, is_there, load_public_keys, next_public_key
from gramfuse_server.tables import AuditRow, ModelRow
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.errors import ConfigurationError, DocumentMalformedError
from gramfuse_shared.signatures import is_signed

CREATED: Final = "receipt-key.create"
ROTATED: Final = "receipt-key.rotate"
REPLACED: Final = "receipt-key.replace"
HOW_TO_BRING_IT: Final = (
    "copy the key (and its hand-overs) from the API's machine or the backup; if it is lost: `gramfuse-server key "
    "replace`, see docs/operations.md"
)
HOW_TO_FINISH: Final = "run `gramfuse-server key rotate` or `key replace` again, whichever it was"


def find_key(session: Session) -> str | None:
    """Return the public half of the key that the database's receipts are signed by; None where nothing says it yet."""
    told = session.scalar(
        select(AuditRow.details)
        .where(AuditRow.action.in_((CREATED, ROTATED, REPLACED)))
        .order_by(AuditRow.sequence.desc())
        .limit(1)
    )
    if told is not None:
        details = json.loads(told)
        named: str | None = details.get("successor", details.get("key"))
        if named is not None:
            return named
    for receipt in session.scalars(select(ModelRow.receipt).order_by(ModelRow.created_at.desc())):
        try:
            signed = SignedReceipt.parse(receipt)
        except DocumentMalformedError:  # somebody changed it: `gramfuse-server verify` names it
            continue
        if is_signed(signed.receipt, signed.signature, signed.public_key):
            return signed.public_key
    return None


def require_own_key(session: Session, path: Path, *, or_next: bool = False) -> ReceiptKeys:
    """Require that the key that is here signed the database's receipts, or took over from the one that did.

    Args:
        session: of the database.
        path: where the key should lie.
        or_next: whether it will do that the next key is the database's, because a rotation was begun and not finished.

    Raises:
        ConfigurationError: it is not there, cannot be read, or is another.
    """
    own = find_key(session)
    if own is not None and not is_there(path):
        msg = f"this database's receipts are signed by {own}, and {path} is not there: {HOW_TO_BRING_IT}"
        raise ConfigurationError(msg)
    keys = load_public_keys(path)
    if or_next and own is not None and own == next_public_key(path):
        return keys
    trouble = why_another(own, keys, path)
    if trouble is not None:
        raise ConfigurationError(trouble)
    return keys


def why_another(own: str | None, keys: ReceiptKeys, path: Path) -> str | None:
    """Say why keys are not those of a database whose receipts are signed by `own`, and what to do; None if they are."""
    if own is None or own in {keys.present, *keys.former}:
        return None
    if own == next_public_key(path):
        return f"{own} was about to take the place of the receipt key in {path}: {HOW_TO_FINISH}"
    return (
        f"this database's receipts are signed by {own}, and {path} holds another key, {keys.present}: {HOW_TO_BRING_IT}"
    )


def settle_key(session: Session, path: Path) -> bool:
    """Create a new server's key, unless there is one; tell whether it is new. A database that has a key gets no other.

    Raises:
        ConfigurationError: the database's key is not here.
    """
    return find_key(session) is None and create_key(path)


def note_key(session: Session, path: Path, *, now: datetime) -> ReceiptKeys:
    """Note whose receipts the database will hold, unless it says so already; raises as `require_own_key`."""
    keys = require_own_key(session, path)
    if find_key(session) is None:
        details = {"key": keys.present}
        audit_log.append(
            session, at=now, organization=None, token=None, action=CREATED, subject="server", details=details
        )
    return keys
