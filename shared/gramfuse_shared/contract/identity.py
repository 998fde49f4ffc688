"""What an organization signs with its identity key outside of a secure session, and how people compare such keys.

An identity key is Ed25519, of one organization, and never leaves its client's home. Its public half comes to a project
with the acceptance of the policy. Signing and verifying is `gramfuse_shared.signatures`'s; here is what the bytes are.
"""

import base64
from typing import Final, Literal

from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import ContributionManifest, PolicyReference
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.identifiers import Digest, Key, OrganizationName, ProjectId, Signature

SIGNATURE_HEADER: Final = "Gramfuse-Signature"
"""Of a request that creates a contribution: the signature of its statement, base64."""

FINGERPRINT_DIGITS: Final = 40
"""160 bits of SHA-256: nobody finds another key with the same."""

_GROUP_DIGITS: Final = 4


class PolicyAcceptance(Document):
    """An organization accepts a version of a project's policy, and says which key is its own there."""

    format: Literal["gramfuse/acceptance/1"] = "gramfuse/acceptance/1"
    project: ProjectId
    organization: OrganizationName
    policy: PolicyReference
    identity: Key


class ContributionStatement(Document):
    """That an organization made this contribution, by its manifest's digest, under this policy; signed with a push."""

    format: Literal["gramfuse/contribution-statement/1"] = "gramfuse/contribution-statement/1"
    project: ProjectId
    organization: OrganizationName
    policy: PolicyReference
    manifest: Digest
    identity: Key


class SignedAcceptance(Document):
    """An acceptance with the signature of the identity key that it names."""

    acceptance: PolicyAcceptance
    signature: Signature


def statement_of(manifest: ContributionManifest, identity: str) -> ContributionStatement:
    """Return what an organization signs of its contribution."""
    return ContributionStatement(
        project=manifest.project,
        organization=manifest.organization,
        policy=manifest.policy,
        manifest=manifest.content_digest(),
        identity=identity,
    )


def fingerprint_of(identity: str) -> str:
    """Return what people compare of a public key: the first 160 bits of its SHA-256, `3f2a 91c0 …`."""
    digits = sha256_hex(base64.b64decode(identity))[:FINGERPRINT_DIGITS]
    return " ".join(digits[at : at + _GROUP_DIGITS] for at in range(0, FINGERPRINT_DIGITS, _GROUP_DIGITS))
