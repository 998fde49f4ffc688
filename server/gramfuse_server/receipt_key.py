"""The Ed25519 key that signs receipts: where it lies, and what to do when it does not."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse_server.settings import make_folder
from gramfuse_shared import key_file
from gramfuse_shared.errors import ConfigurationError


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
    except (OSError, ValueError) as error:
        msg = (
            f"the receipt key {path} cannot be read ({error}); `gramfuse-server init` creates it (GRAMFUSE_RECEIPT_KEY)"
        )
        raise ConfigurationError(msg) from error
