"""The organization's identity: the key in its home that signs what it accepts and contributes."""

import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse.config import HOME_VARIABLE, Home
from gramfuse_shared import key_file, signatures
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.identity import fingerprint_of
from gramfuse_shared.errors import ConfigurationError

_FOLDER: Final = "identity"
_FILE: Final = "ed25519.pem"


@dataclass(frozen=True)
class Identity:
    """An organization's Ed25519 key and where it lies. Its repr shows the public half alone."""

    path: Path
    key: Ed25519PrivateKey = field(repr=False)

    @cached_property
    def public(self) -> str:
        """The public half, base64."""
        return signatures.public_key(self.key)

    @property
    def fingerprint(self) -> str:
        """What people compare."""
        return fingerprint_of(self.public)

    def sign(self, document: Document) -> str:
        """Sign a document of the contract; return base64."""
        return signatures.sign(document, self.key)


def identity_path(home: Home) -> Path:
    """Return where the identity key of a home lies, whether it is there or not."""
    return home.path / _FOLDER / _FILE


def create_identity(home: Home) -> tuple[Identity, bool]:
    """Return the home's identity, made where there is none yet; tell whether it is new.

    Raises:
        ConfigurationError: the home cannot be written, or the key that is there cannot be read.
    """
    path = home.folder(_FOLDER) / _FILE
    try:
        new = key_file.create_key(path)
    except OSError as error:
        msg = f"the identity key {path} cannot be written: {error.strerror}; set {HOME_VARIABLE}"
        raise ConfigurationError(msg) from error
    return load_identity(home), new


def load_identity(home: Home) -> Identity:
    """Return the home's identity.

    Raises:
        ConfigurationError: there is none, others can read it, or it is not an Ed25519 key.
    """
    path = identity_path(home)
    try:
        key = key_file.read_key(path)
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError as error:
        msg = (
            f"there is no identity key in {path}: `gramfuse identity create` makes one, and `project join` registers it"
        )
        raise ConfigurationError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"the identity key {path} cannot be read ({error})"
        raise ConfigurationError(msg) from error
    if os.name == "posix" and mode & 0o077:
        msg = f"the identity key {path} can be read by others (mode {mode:o}): run chmod 600 {path}"
        raise ConfigurationError(msg)
    return Identity(path, key)
