"""The messages of secure aggregation: five stages, each signed by its sender, each naming the ones it answers.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4, in the
variant for a malicious server. A session is a chain: every message holds the digest of the messages of the stage before
as its sender saw them, so members who sign the same set of survivors have seen the same session throughout.

| stage | a member was shown | and says |
|---|---|---|
| `keys` | the session manifest | two X25519 public keys, and the digest of its self-mask's seed |
| `shares` | all `keys` | for every other member, encrypted: a share of its masking key and one of the seed |
| `masked` | all `shares` | the digest of its file of masked words |
| `survivors` | all `masked` | that these and no others are summed |
| `unmask` | t or more `survivors` | of each survivor its share of the seed, of everybody else that of the masking key |
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.receipt import Base64
from gramfuse_shared.digest import document_digest
from gramfuse_shared.identifiers import Digest, Key, OrganizationName, Share, Signature

Stage = Literal["keys", "shares", "masked", "survivors", "unmask"]
STAGES: Final[tuple[Stage, ...]] = ("keys", "shares", "masked", "survivors", "unmask")

WORDS_FILE_NAME: Final = "words.safetensors"

_Members = Field(min_length=1, max_length=limits.MAX_SECURE_COHORT)


class Keys(Document):
    """A member's public keys for this session, and the SHA-256 of the seed of its self mask.

    Attributes:
        encryption: X25519, for the encryption of shares between two members.
        masking: X25519, for the masks that two members have in common.
        seed: against which a reconstructed seed is checked.
    """

    encryption: Key
    masking: Key
    seed: Digest


class SealedShares(Document):
    """Two Shamir shares for one member, encrypted: of the sender's masking key and of its seed."""

    recipient: OrganizationName
    ciphertext: Base64


class Shares(Document):
    """Shares for every other member whose keys were shown; `keys` is the digest of these."""

    keys: Digest
    sealed: Annotated[tuple[SealedShares, ...], _Members]


class Masked(Document):
    """The file of masked words; `shares` is the digest of the messages whose senders are in the masks."""

    shares: Digest
    words: FileEntry


class Survivors(Document):
    """Those whose masked words are summed; `masked` is the digest of their messages."""

    masked: Digest
    organizations: Annotated[tuple[OrganizationName, ...], _Members]


class RevealedShare(Document):
    """One Shamir share of an owner's secret: 33 bytes, big-endian, in base64."""

    owner: OrganizationName
    share: Share


class Unmask(Document):
    """The sender's shares: of the seeds of survivors, and of the masking keys of those who sent no words. Never both.

    `survivors` is the digest of the `masked` messages that t members signed for.
    """

    survivors: Digest
    seeds: Annotated[tuple[RevealedShare, ...], _Members]
    masking_keys: Annotated[tuple[RevealedShare, ...], Field(max_length=limits.MAX_SECURE_COHORT)] = ()

    @model_validator(mode="after")
    def _never_both(self) -> Self:
        owners = [revealed.owner for revealed in (*self.seeds, *self.masking_keys)]
        if len(set(owners)) != len(owners):
            msg = "of one member one secret is revealed, and once"
            raise ValueError(msg)
        return self


class SessionMessage(Document):
    """What all messages say: of which session they are, and whose."""

    format: Literal["gramfuse/secure/1"] = "gramfuse/secure/1"
    session: Digest
    sender: OrganizationName


class KeysMessage(SessionMessage):
    """The first stage's message."""

    stage: Literal["keys"] = "keys"
    body: Keys


class SharesMessage(SessionMessage):
    """The second stage's message."""

    stage: Literal["shares"] = "shares"
    body: Shares


class MaskedMessage(SessionMessage):
    """The third stage's message."""

    stage: Literal["masked"] = "masked"
    body: Masked


class SurvivorsMessage(SessionMessage):
    """The fourth stage's message."""

    stage: Literal["survivors"] = "survivors"
    body: Survivors


class UnmaskMessage(SessionMessage):
    """The last stage's message."""

    stage: Literal["unmask"] = "unmask"
    body: Unmask


Message: TypeAlias = Annotated[
    KeysMessage | SharesMessage | MaskedMessage | SurvivorsMessage | UnmaskMessage, Field(discriminator="stage")
]


class SignedMessage(Document):
    """A message with its sender's Ed25519 signature (RFC 8032) over the message's canonical JSON (RFC 8785)."""

    message: Message
    signature: Signature


def roster_digest(messages: Sequence[Message]) -> str:
    """Return the digest that the next stage's messages name: of the messages' own digests, by ascending sender."""
    ordered = sorted(messages, key=lambda message: message.sender)
    return document_digest([message.content_digest() for message in ordered])
