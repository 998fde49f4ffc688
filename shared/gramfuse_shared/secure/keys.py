"""The secrets of a session and what is derived from them: everything from 32 random bytes, so nothing is sent twice.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) with the session's digest as salt, AES-256-GCM for shares. Every derived key
serves one purpose between named members of one session.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gramfuse_shared.contract.secure import Keys
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import SecureSessionRefusedError
from gramfuse_shared.secure import shamir
from gramfuse_shared.secure.masks import Mask

ROOT_BYTES = 32
_NONCE = bytes(12)  # a key encrypts one message


@dataclass(frozen=True, slots=True)
class Secrets:
    """A member's secrets of one session; all of them follow from `root`, 32 random bytes."""

    session: SessionManifest
    organization: str
    root: bytes = field(repr=False)

    @property
    def encryption_key(self) -> X25519PrivateKey:
        """The key that shares are encrypted with."""
        return X25519PrivateKey.from_private_bytes(self._derived("encryption key"))

    @property
    def masking_key(self) -> bytes:
        """The X25519 private key of the masks that this member has in common with each other one; it is shared."""
        return self._derived("masking key")

    @property
    def seed(self) -> bytes:
        """What the self mask is made from; it is shared."""
        return self._derived("seed of the self mask")

    def public(self) -> Keys:
        """Return what the others are told."""
        return Keys(
            encryption=_public_key(self.encryption_key),
            masking=public_masking_key(self.masking_key),
            seed=sha256_hex(self.seed),
        )

    def share_for(self, organization: str) -> tuple[bytes, bytes]:
        """Return a member's shares of the masking key and of the seed: always the same, whoever else takes part."""
        points, count = [point_of(self.session, organization)], self.session.threshold - 1
        return tuple(  # type: ignore[return-value] # two
            shamir.split(
                secret,
                points,
                randomness=self._derived(f"coefficients of {name}", shamir.COEFFICIENT_BYTES * count),
            )[0]
            for name, secret in (("the masking key", self.masking_key), ("the seed", self.seed))
        )

    def seal(self, recipient: str, public: Keys) -> str:
        """Encrypt a member's shares for it; return base64."""
        key = self._agreed(public.encryption, self.encryption_key, "shares", self.organization, recipient)
        sealed = AESGCM(key).encrypt(_NONCE, b"".join(self.share_for(recipient)), None)
        return base64.b64encode(sealed).decode("ascii")

    def unseal(self, sender: str, public: Keys, ciphertext: str) -> tuple[bytes, bytes]:
        """Decrypt what a member encrypted for this one: shares of its masking key and of its seed.

        Raises:
            SecureSessionRefusedError: the sender did not encrypt this for this member in this session.
        """
        key = self._agreed(public.encryption, self.encryption_key, "shares", sender, self.organization)
        try:
            shares = AESGCM(key).decrypt(_NONCE, base64.b64decode(ciphertext, validate=True), None)
        except (InvalidTag, ValueError) as error:
            msg = f"what {sender} encrypted for {self.organization} cannot be decrypted; begin another session"
            raise SecureSessionRefusedError(msg, sender=sender) from error
        if len(shares) != 2 * shamir.SHARE_BYTES:
            msg = f"what {sender} encrypted for {self.organization} is not two shares; begin another session"
            raise SecureSessionRefusedError(msg, sender=sender)
        return shares[: shamir.SHARE_BYTES], shares[shamir.SHARE_BYTES :]

    def masks(self, others: Sequence[tuple[str, Keys]]) -> tuple[Mask, ...]:
        """Return the self mask and the mask with each other member, that of the later name subtracted."""
        pairs = (pair_mask(self.session, self.organization, self.masking_key, *other) for other in others)
        return (self_mask(self.session, self.organization, self.seed), *pairs)

    def _derived(self, purpose: str, length: int = 32) -> bytes:
        return _derive(self.root, self.session, purpose, self.organization, length=length)

    def _agreed(self, public: str, private: X25519PrivateKey, purpose: str, *parties: str) -> bytes:
        return _derive(_exchange(private, public, *parties), self.session, purpose, *parties)


def encode_share(share: bytes) -> str:
    """Return a share as messages hold it."""
    return base64.b64encode(share).decode("ascii")


def point_of(session: SessionManifest, organization: str) -> int:
    """Return where a member's shares lie: its place among the members, from 1."""
    return session.organizations.index(organization) + 1


def public_masking_key(private: bytes) -> str:
    """Return the public half of a masking key, as members were told it; checks a reconstructed one."""
    return _public_key(X25519PrivateKey.from_private_bytes(private))


def self_mask(session: SessionManifest, organization: str, seed: bytes) -> Mask:
    """Return a member's self mask, which is added."""
    return Mask(_derive(seed, session, "self mask", organization), 1)


def pair_mask(session: SessionManifest, organization: str, private: bytes, other: str, public: Keys) -> Mask:
    """Return the mask that a member has in common with another: the earlier name adds it, the later subtracts it.

    Raises:
        SecureSessionRefusedError: the other's key has no secret in common with anybody.
    """
    first, second = sorted((organization, other))
    agreed = _exchange(X25519PrivateKey.from_private_bytes(private), public.masking, first, second)
    return Mask(_derive(agreed, session, "mask", first, second), 1 if organization == first else -1)


def _exchange(private: X25519PrivateKey, public: str, *parties: str) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(base64.b64decode(public)))
    except ValueError as error:  # a point of small order: the secret would be zero, whoever asks
        msg = f"a public key of {' and '.join(parties)} gives no secret; begin another session"
        raise SecureSessionRefusedError(msg) from error


def _derive(secret: bytes, session: SessionManifest, purpose: str, *parties: str, length: int = 32) -> bytes:
    # names hold no line breaks, so that no two purposes have the same text
    info = "\n".join(("gramfuse/secure/1", purpose, *parties)).encode()
    return HKDF(SHA256(), length, bytes.fromhex(session.digest), info).derive(secret)


def _public_key(key: X25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode("ascii")
