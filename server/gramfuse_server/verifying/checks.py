"""The checks of `gramfuse-server verify`, each a finding with what to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from obstore.exceptions import BaseError
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log, schema
from gramfuse_server.blobs import open_blobs
from gramfuse_server.database import Database, snapshot
from gramfuse_server.doctor.findings import Finding, failed, ok
from gramfuse_server.receipt_key import ReceiptKeys, load_public_keys
from gramfuse_server.settings import Settings
from gramfuse_server.tables import ModelFileRow, ModelRow
from gramfuse_server.verifying.inventory import Inventory, Loss, named_files, take_inventory
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.errors import AuditChainBrokenError, ConfigurationError, GramfuseError
from gramfuse_shared.signatures import is_signed

_TOLD = 10
_ALL_LISTED = "`--format json` lists all"
_AFTER_THE_HEAD = (
    "the log is whole, and another than the head was noted of: if the head was noted after this backup, what came in "
    "between is lost; else rows were cut off or written anew: docs/operations.md, When something is wrong"
)
_EDITED = (
    "somebody wrote into the database past gramfuse, or a backup was changed: take another backup, or on a running "
    "server go on by docs/operations.md, When something is wrong"
)


@dataclass(frozen=True, slots=True)
class Verified:
    """All findings, and the losses that those about files count."""

    findings: tuple[Finding, ...]
    losses: tuple[Loss, ...] = ()


def verify_contents(
    settings: Settings, database: Database, *, digests: bool, head: tuple[int, str] | None = None
) -> Verified:
    """Make every check; nothing is changed.

    Args:
        settings: of the server, for its store and its key.
        database: open.
        digests: whether to read all bytes.
        head: of the audit log, as it was noted.
    """
    try:
        schema.require_current(database)
    except ConfigurationError as error:
        advice = "restore a database, or upgrade it; nothing else was checked"
        return Verified((failed("database", error.message, advice),))
    with snapshot(database) as session:
        findings = [check_audit_log(session, head), check_receipts(session, settings)]
        try:
            inventory = take_inventory(session, open_blobs(settings.blobs, persistence="hardly"), digests=digests)
        except (ConfigurationError, BaseError, OSError) as error:
            advice = "correct GRAMFUSE_BLOBS, or let this user list and read there; `gramfuse-server doctor` says more"
            return Verified((*findings, failed("files", f"cannot be read: {str(error).partition(chr(10))[0]}", advice)))
    inventory = replace(inventory, losses=tuple(_still_named(database, inventory.losses)))
    return Verified((*findings, *check_files(inventory, digests=digests)), inventory.losses)


def _still_named(database: Database, losses: Sequence[Loss]) -> Iterator[Loss]:
    """Pass over what is named no more: parts of an upload, for example, that was accepted meanwhile."""
    if losses:
        with snapshot(database) as session:
            named = set(named_files(session))
        yield from (loss for loss in losses if loss.named in named)


def check_audit_log(session: Session, head: tuple[int, str] | None) -> Finding:
    """The chain is whole, and goes on from a head that was noted."""
    try:
        rows, digest = audit_log.verify(session, noted=head)
    except AuditChainBrokenError as error:
        return failed("audit log", error.message, _AFTER_THE_HEAD if head and _is_intact(session) else _EDITED)
    return ok("audit log", f"{rows} rows, intact; the last digest is {digest}")


def _is_intact(session: Session) -> bool:
    try:
        audit_log.verify(session)
    except AuditChainBrokenError:
        return False
    return True


def check_receipts(session: Session, settings: Settings) -> Finding:
    """Every receipt is signed by the key that is here or one that it took over from, and names the model's files."""
    name = "receipts"
    try:
        keys = load_public_keys(settings.receipt_key)
    except GramfuseError as error:
        advice = "restore the key from its backup: a new one is another identity, which clients refuse"
        return failed(name, error.message, advice)
    models = session.scalars(select(ModelRow).order_by(ModelRow.project, ModelRow.id)).all()
    troubles = [f"{row.project}/{row.id} {trouble}" for row in models for trouble in _troubles(session, row, keys)]
    former = f" or one of the {len(keys.former)} before it" if keys.former else ""
    if not troubles:
        return ok(name, f"{len(models)} of {len(models)} signed by {keys.present}{former}")
    found = f"{'; '.join(troubles[:_TOLD])}{_rest(len(troubles))}; the key here is {keys.present}"
    advice = "restore the key that was used (GRAMFUSE_RECEIPT_KEY); a receipt that no key signed was changed"
    return failed(name, found, advice)


def check_files(inventory: Inventory, *, digests: bool) -> Iterator[Finding]:
    """Say what of the named files is there, and how many are there unnamed."""
    looked = "with their lengths and SHA-256" if digests else "with their lengths"
    if not inventory.losses:
        yield ok("files", f"{inventory.files} files, {inventory.bytes} bytes, all there {looked}")
    for loss in inventory.losses[:_TOLD]:
        seen = "" if loss.trouble != "wrong size" else f" ({loss.found} bytes in place of {loss.named.bytes})"
        yield failed("files", f"{loss.trouble}{seen}: {loss.named.key}: {loss.named.named_by}", _advice(loss))
    if len(inventory.losses) > _TOLD:
        yield failed("files", f"{len(inventory.losses) - _TOLD} more are missing or damaged", _ALL_LISTED)
    if inventory.unnamed:
        text = f"{inventory.unnamed} that nothing names, or not any more; workers delete them (docs/operations.md)"
        yield ok("other files", text)


def _advice(loss: Loss) -> str:
    if not loss.models:
        return loss.named.advice
    models = f"{', '.join(loss.models[:_TOLD])}{_rest(len(loss.models))}"
    return f"{loss.named.advice}. Merged from it since it was accepted: {models}; merge these again"


def _troubles(session: Session, row: ModelRow, keys: ReceiptKeys) -> Iterator[str]:
    try:
        signed = SignedReceipt.parse(row.receipt)
    except GramfuseError as error:
        yield f"cannot be read: {error.message}"
        return
    if not is_signed(signed.receipt, signed.signature, signed.public_key):
        yield "has a wrong signature"
    elif signed.public_key not in {keys.present, *keys.former}:
        yield f"is signed by another key, {signed.public_key}"
    files = session.scalars(
        select(ModelFileRow)
        .where(ModelFileRow.project == row.project, ModelFileRow.model == row.id)
        .order_by(ModelFileRow.position)
    )
    if tuple(FileEntry(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in files) != (
        signed.receipt.outputs
    ):
        yield "names other files than the model has"


def _rest(count: int) -> str:
    return f"; and {count - _TOLD} more" if count > _TOLD else ""
