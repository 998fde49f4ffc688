"""The Ed25519 key that signs receipts: one file, readable by its owner only."""

import base64
import os
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from gramfuse_server.settings import make_folder
from gramfuse_shared.errors import ConfigurationError


def create_key(path: Path) -> bool:
    """Create the key unless there is one; tell whether it is new. Two processes at once agree on one key."""
    if path.exists():
        return False
    make_folder(path.parent, "GRAMFUSE_RECEIPT_KEY")
    content = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)  # complete at once, and never over a key that is there
    except FileExistsError:
        return False
    finally:
        Path(beside).unlink()
    return True


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read the key.

    Raises:
        ConfigurationError: missing, unreadable, or of another kind.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        msg = (
            f"the receipt key {path} cannot be read ({error}); `gramfuse-server init` creates it (GRAMFUSE_RECEIPT_KEY)"
        )
        raise ConfigurationError(msg) from error
    if not isinstance(key, Ed25519PrivateKey):
        msg = f"{path} holds a key of another kind; receipts are signed with Ed25519"
        raise ConfigurationError(msg)
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """Return the public half as base64 of its 32 raw bytes, as the contract writes it."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode("ascii")
