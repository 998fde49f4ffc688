"""Ed25519 (RFC 8032) over documents: what is signed is always a document's canonical JSON (RFC 8785).

Every document says its format, so that a signature of one kind is never one of another.
"""

import base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gramfuse_shared.contract.document import Document


def public_key(key: Ed25519PrivateKey) -> str:
    """Return the public half as base64 of its 32 raw bytes, as the contract writes it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode("ascii")


def sign(document: Document, key: Ed25519PrivateKey) -> str:
    """Sign a document; return base64. Ed25519 is deterministic: the same document has the same signature."""
    return base64.b64encode(key.sign(document.canonical())).decode("ascii")


def is_signed(document: Document, signature: str, public: str) -> bool:
    """Tell whether the private half of a public key signed a document; False too where either is not what it says."""
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        key.verify(base64.b64decode(signature, validate=True), document.canonical())
    except (InvalidSignature, ValueError):
        return False
    return True
