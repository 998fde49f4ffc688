"""The commands `gramfuse-server key …`: show the receipt key, hand over to another one, give it up."""

from collections.abc import Collection
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log, heartbeats, schema
from gramfuse_server.clock import system_clock
from gramfuse_server.database import transaction
from gramfuse_server.settings import Settings, load_settings
from gramfuse_server.tables import ModelRow, WorkerRow
from gramfuse_shared.errors import NotConfirmedError, StateError
from gramfuse_shared.shell import printing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from gramfuse_server.receipt_key import ReceiptKeys

key_commands: Final = typer.Typer(help="The key that signs receipts.", no_args_is_help=True)


@key_commands.command("show")
def show_key() -> None:
    """Show the receipt key, which people compare, and those that it took over from.

    Example: gramfuse-server key show
    """
    from gramfuse_server import receipt_key  # noqa: PLC0415 - cryptography takes its time to load

    _tell(receipt_key.load_public_keys(load_settings().receipt_key))


@key_commands.command("rotate")
def rotate_key() -> None:
    """Hand over to a new receipt key: the old one signs it, so clients follow by themselves. Then the old one is gone.

    Stop API and workers before, start them afterwards. Only where nobody else had the old key: who had it can hand over
    to a key of its own as well; `key replace` is for that. Killed in between, run it again.

    Example: gramfuse-server key rotate
    """
    from gramfuse_server import database_key, receipt_key  # noqa: PLC0415 - as above
    from gramfuse_shared.signatures import public_key  # noqa: PLC0415

    settings = load_settings()
    with _stopped_server(settings) as session:
        former = database_key.require_own_key(session, settings.receipt_key, or_next=True)
        receipt_key.require_room(former)
        successor = receipt_key.create_next_key(settings.receipt_key)
        _audit(session, database_key.ROTATED, former.present, public_key(successor))
    _tell(receipt_key.rotate(settings.receipt_key, now=system_clock()))
    printing.note("Delete the old key from backups, and save the new one with its hand-overs.")


@key_commands.command("replace")
def replace_key(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give the receipt key up, because it is lost or somebody else may have it: a new one, and no hand-over.

    Receipts that the key here signed are signed anew. Every client refuses models until its people have compared the
    new key and run `gramfuse login URL --receipt-key KEY`. Stop API and workers before. Killed in between, run it
    again.

    Example: gramfuse-server key replace --yes
    """
    from gramfuse_server import database_key, receipt_key  # noqa: PLC0415 - as above
    from gramfuse_shared.signatures import public_key  # noqa: PLC0415

    settings = load_settings()
    former = None if receipt_key.is_lost(settings.receipt_key) else receipt_key.load_public_keys(settings.receipt_key)
    lost = f"{settings.receipt_key} holds no key, so no old receipt can be signed anew. " if former is None else ""
    if not yes and not typer.confirm(
        f"{lost}No client will trust this server until it was told the new key. Go on?", err=True
    ):
        msg = "the receipt key stays"
        raise NotConfirmedError(msg)
    with _stopped_server(settings) as session:
        successor = receipt_key.create_next_key(settings.receipt_key)
        trusted = () if former is None else (former.present, *former.former)
        signed, left = sign_anew(session, successor, trusted=trusted)
        given_up = database_key.find_key(session) if former is None else former.present
        _audit(session, database_key.REPLACED, given_up, public_key(successor))
    _tell(receipt_key.replace(settings.receipt_key), signed_anew=signed, left_as_they_were=left)
    for model in left:
        printing.note(f"{model}: its receipt was not signed by a key that is here and is left as it was")


def sign_anew(session: Session, key: "Ed25519PrivateKey", *, trusted: Collection[str]) -> tuple[int, list[str]]:
    """Sign receipts with another key, if one of the trusted keys signed them; return how many, and whose are left."""
    from gramfuse_shared.contract.receipt import SignedReceipt  # noqa: PLC0415 - as above
    from gramfuse_shared.signatures import is_signed, public_key, sign  # noqa: PLC0415

    count, left, own = 0, [], public_key(key)
    for row in session.scalars(select(ModelRow).order_by(ModelRow.project, ModelRow.id).with_for_update()):
        signed = SignedReceipt.parse(row.receipt)
        if signed.public_key not in {own, *trusted} or not is_signed(
            signed.receipt, signed.signature, signed.public_key
        ):
            left.append(f"{row.project}/{row.id}")
            continue
        anew = SignedReceipt(receipt=signed.receipt, public_key=own, signature=sign(signed.receipt, key))
        row.receipt = anew.canonical().decode()
        count += 1
    return count, left


def require_no_worker(session: Session, settings: Settings, now: datetime) -> None:
    """Require that no worker is alive: it would go on to sign with the key that it has read.

    Raises:
        StateError: one is.
    """
    for row in session.scalars(select(WorkerRow).where(WorkerRow.stopped_at.is_(None)).order_by(WorkerRow.id)):
        if heartbeats.is_alive(row, now, settings.worker_lease):
            msg = f"the worker {row.id} is alive and would go on with the old key: stop API and workers first"
            raise StateError(msg)


@contextmanager
def _stopped_server(settings: Settings) -> "Iterator[Session]":
    with schema.opened(settings.database_url) as database, transaction(database) as session:
        require_no_worker(session, settings, system_clock())
        yield session


def _audit(session: Session, action: str, former: str | None, successor: str) -> None:
    details = {"former": former, "successor": successor}
    audit_log.append_for(session, audit_log.SHELL, at=system_clock(), action=action, subject="server", details=details)


def _tell(keys: "ReceiptKeys", *, signed_anew: int | None = None, left_as_they_were: Collection[str] = ()) -> None:
    lines = [f"receipt key  {keys.present}", *(f"took over    {former}" for former in reversed(keys.former))]
    told: dict[str, object] = {"receipt_key": keys.present, "former": list(keys.former)}
    if signed_anew is not None:
        lines.append(f"receipts     {signed_anew} signed anew")
        told |= {"receipts_signed_anew": signed_anew, "receipts_left": list(left_as_they_were)}
    printing.show(told, lambda _: typer.echo("\n".join(lines)))
