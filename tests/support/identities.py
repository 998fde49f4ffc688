"""What made-up organizations do with their identity keys, which are the same on every run."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gramfuse_shared.contract.identity import PolicyAcceptance, SignedAcceptance
from gramfuse_shared.contract.manifest import PolicyReference
from gramfuse_shared.signatures import public_key, sign
from support.secure_sessions import identity_of


def keep_identity(organization: str, home: Path) -> None:
    """Write an organization's key where its client looks for it."""
    path = home / "identity" / "ed25519.pem"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = identity_of(organization).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.touch(mode=0o600)
    path.write_bytes(content)


def signed_acceptance(
    project: str, organization: str, digest: str, *, version: int = 1, key: Ed25519PrivateKey | None = None
) -> SignedAcceptance:
    key = key or identity_of(organization)
    acceptance = PolicyAcceptance(
        project=project,
        organization=organization,
        policy=PolicyReference(version=version, digest=digest),
        identity=public_key(key),
    )
    return SignedAcceptance(acceptance=acceptance, signature=sign(acceptance, key))
