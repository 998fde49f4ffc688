"""Sessions of secure aggregation for tests: members with fixed identity keys, and what they sum."""

import base64
import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gramfuse_shared.contract.manifest import PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import MethodParameters, Recipe
from gramfuse_shared.contract.secure_session import (
    SessionManifest,
    SessionMember,
    SessionTap,
    SummedTensor,
    threshold_of,
)

ORGANIZATIONS = ("acme", "brick", "corex", "dunder", "eagle", "fabrikam", "globex")
ACCEPTED = Policy()
DIGEST = hashlib.sha256(b"").hexdigest()


def identity_of(organization: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(organization.encode()).digest())


def public_identity(organization: str) -> str:
    raw = identity_of(organization).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(raw).decode("ascii")


def member_of(organization: str, weight: float = 1.0) -> SessionMember:
    return SessionMember(
        organization=organization,
        contribution=hashlib.sha256(f"contribution of {organization}".encode()).hexdigest(),
        identity=public_identity(organization),
        weight=weight,
    )


def session_of(
    members: int = 3,
    *,
    sums: Sequence[SummedTensor] = (SummedTensor(name="weighted.a", shape=(3,), fraction_bits=40, bound=16.0),),
    taps: Sequence[SessionTap] = (),
    method: str = "linear",
    alpha: float = 0.9,
    session: str = "secure-1",
) -> SessionManifest:
    return SessionManifest(
        project="acme.tweets",
        session=session,
        policy=PolicyReference(version=1, digest=ACCEPTED.content_digest()),
        base=DIGEST,
        recipe=Recipe(merge_method=method, parameters=MethodParameters(alpha=alpha)),
        scales=DIGEST if taps else None,
        members=tuple(map(member_of, ORGANIZATIONS[:members])),
        threshold=threshold_of(members),
        taps=tuple(taps),
        sums=tuple(sums),
    )
