"""An Ed25519 private key in a file of its own, readable by its owner only: a server's receipt key, an identity."""

import os
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


def create_key(path: Path) -> bool:
    """Create a key unless there is one; tell whether it is new. Two processes at once agree on one key.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    if path.exists():
        return False
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
