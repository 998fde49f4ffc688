"""An Ed25519 private key in a file of its own, readable by its owner only: a server's receipt key, an identity."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from gramfuse_shared.creating import create_once


def create_key(path: Path) -> bool:
    """Create a key unless there is one; tell whether it is new. Two processes at once agree on one key.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    return create_once(
        path, lambda: Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read a key.

    Raises:
        OSError, ValueError: missing, unreadable, or of another kind; messages hold nothing of the key.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except TypeError as error:  # it wants a password
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        msg = "it holds a key of another kind than Ed25519"
        raise ValueError(msg)  # noqa: TRY004 - the file's content is wrong, not a caller's type
    return key
