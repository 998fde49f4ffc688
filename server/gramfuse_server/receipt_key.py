"""The Ed25519 key that signs receipts: where it lies, and what to do when it does not; how another takes its place.

Beside the key lies what leads to it from the keys before (`….handovers.json`), and while another is taking its place
the next key (`….next`). Files are exchanged by renaming, so a rotation that was killed is finished by the next try.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse_server.settings import make_folder
from gramfuse_shared import key_file, limits
from gramfuse_shared.contract.key_handover import KeySuccession, SignedHandover
from gramfuse_shared.creating import replace_file, sync_folder
from gramfuse_shared.errors import ConfigurationError, DocumentMalformedError, ReceiptInvalidError
from gramfuse_shared.signatures import public_key
from gramfuse_shared.succession import hand_over, require_succession


@dataclass(frozen=True, slots=True)
class ReceiptKeys:
    """The public halves: the present key, and how it came to be from those before."""

    present: str
    handovers: tuple[SignedHandover, ...] = ()

    @property
    def former(self) -> tuple[str, ...]:
        """The keys before, oldest first."""
        return tuple(signed.handover.former for signed in self.handovers)


def create_key(path: Path) -> bool:
    """Create the key unless there is one; tell whether it is new."""
    make_folder(path.parent, "GRAMFUSE_RECEIPT_KEY")
    return key_file.create_key(path)


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read the key.

    Raises:
        ConfigurationError: missing, unreadable, or of another kind.
    """
    try:
        return key_file.read_key(path)
    except FileNotFoundError as error:
        msg = (
            f"the receipt key {path} is not there (GRAMFUSE_RECEIPT_KEY): `gramfuse-server init` makes a new server's; "
            "another machine's and a restored server's is copied, with its hand-overs"
        )
        raise ConfigurationError(msg) from error
    except OSError as error:
        msg = f"the receipt key {path} cannot be read ({error.strerror}): run this as its owner (GRAMFUSE_RECEIPT_KEY)"
        raise ConfigurationError(msg) from error
    except ValueError as error:
        msg = (
            f"the receipt key {path} cannot be read ({error}): restore it from the backup, with its hand-overs; if "
            "there is none: `gramfuse-server key replace`, see docs/operations.md"
        )
        raise ConfigurationError(msg) from error


def is_there(path: Path) -> bool:
    """Tell whether there is a file where the key should be."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:  # it may be there, for who may look
        return True
    return True


def is_lost(path: Path) -> bool:
    """Tell whether there is no key any more; one that only its owner may read is not lost."""
    try:
        key_file.read_key(path)
    except (FileNotFoundError, ValueError):
        return True
    except OSError:
        return False
    return False


def load_public_keys(path: Path) -> ReceiptKeys:
    """Read the public half of the key, and the hand-overs that lead to it.

    Raises:
        ConfigurationError: the key cannot be read, or hand-overs are there and do not lead to it.
    """
    present = public_key(load_key(path))
    recorded = _read_handovers(path)
    # a rotation that was killed has recorded the next key before it took the place of this one
    if recorded and recorded[-1].handover.former == present:
        recorded = recorded[:-1]
    try:
        require_succession(recorded, present)
    except ReceiptInvalidError as error:
        msg = (
            f"{handovers_path(path)} does not lead to the receipt key in {path} ({error.message}): bring back the two "
            "files that belong together"
        )
        raise ConfigurationError(msg) from error
    return ReceiptKeys(present, recorded)


def handovers_path(path: Path) -> Path:
    """Return where the hand-overs of a key lie."""
    return path.with_suffix(".handovers.json")


def next_path(path: Path) -> Path:
    """Return where the key lies that is about to take the place of another."""
    return path.with_name(f"{path.name}.next")


def next_public_key(path: Path) -> str | None:
    """Return the public half of the key that is about to take the place of another; None where none is."""
    try:
        return public_key(load_key(next_path(path)))
    except ConfigurationError:
        return None


def create_next_key(path: Path) -> Ed25519PrivateKey:
    """Create the key that shall take the place of the present one, or read the one that an earlier try made."""
    make_folder(path.parent, "GRAMFUSE_RECEIPT_KEY")
    try:
        key_file.create_key(next_path(path))
    except OSError as error:
        msg = f"the folder of the receipt key cannot be written ({error.strerror}): run this as who owns {path.parent}"
        raise ConfigurationError(msg) from error
    return load_key(next_path(path))


def rotate(path: Path, *, now: datetime) -> ReceiptKeys:
    """Put the next key in the place of the present one, with a hand-over. The present one's private half is gone then.

    Raises:
        ConfigurationError: keys or hand-overs cannot be read or written, or there are too many.
    """
    present, successor = load_key(path), create_next_key(path)
    recorded = _read_handovers(path)
    if not recorded or recorded[-1].handover.successor != public_key(successor):
        before = load_public_keys(path)
        require_room(before)
        recorded = (*before.handovers, hand_over(present, successor, now=now))
        text = KeySuccession(handovers=recorded).model_dump_json(indent=1) + "\n"
        replace_file(handovers_path(path), text.encode(), mode=0o644)  # what is in it is public
        sync_folder(path.parent)
    _take_place(path)
    return load_public_keys(path)


def require_room(keys: ReceiptKeys) -> None:
    """Require that the key can be handed over once more.

    Raises:
        ConfigurationError: clients follow no more hand-overs than there are.
    """
    if len(keys.handovers) >= limits.MAX_HANDOVERS:
        msg = f"the receipt key was handed over {limits.MAX_HANDOVERS} times; `key replace` begins anew"
        raise ConfigurationError(msg)


def replace(path: Path) -> ReceiptKeys:
    """Put the next key in the place of the present one without a hand-over: nobody may trust the keys before any more.

    Raises:
        ConfigurationError: the next key is not there or cannot be read.
    """
    load_key(next_path(path))
    handovers_path(path).unlink(missing_ok=True)
    _take_place(path)
    return load_public_keys(path)


def _read_handovers(path: Path) -> tuple[SignedHandover, ...]:
    try:
        return KeySuccession.parse(handovers_path(path).read_bytes()).handovers
    except FileNotFoundError:
        return ()
    except (OSError, DocumentMalformedError) as error:
        msg = f"the hand-overs of the receipt key, {handovers_path(path)}, cannot be read: {error}"
        raise ConfigurationError(msg) from error


def _take_place(path: Path) -> None:
    next_path(path).replace(path)
    sync_folder(path.parent)
