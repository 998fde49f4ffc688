"""A project's policy in versions, and which organization accepted which."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller
from gramfuse_server.database import insert_if_absent
from gramfuse_server.intake.uploads import scales_of
from gramfuse_server.tables import AcceptanceRow, ParticipantRow, PolicyRow, ProjectRow
from gramfuse_shared.contract.http_api import Acceptance, PolicyVersion
from gramfuse_shared.contract.identity import PolicyAcceptance, SignedAcceptance, fingerprint_of
from gramfuse_shared.contract.manifest import PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import (
    ConflictError,
    IdentityChangedError,
    NotFoundError,
    PolicyViolationError,
    RequestMalformedError,
    SignatureInvalidError,
)
from gramfuse_shared.signatures import is_signed


def publish_policy(
    session: Session, caller: Caller, project: ProjectRow, version: int, policy: Policy, now: datetime
) -> tuple[PolicyRow, bool]:
    """Add the next version of a project's policy; tell whether it is new. Until accepted it blocks push and jobs.

    Raises:
        RoleRequiredError: the caller does not coordinate the project.
        ConflictError: the version exists with another content, is not the next, or names scales that are not there.
        PolicyViolationError: it wants differential privacy, or RegMean of secret sums, and names no scales.
    """
    caller.require_coordinator(project.coordinator)
    existing = session.get(PolicyRow, (project.id, version))
    if existing is not None:
        if existing.digest != policy.content_digest():
            msg = f"version {version} of the policy exists with another content; publish {project.policy_version + 1}"
            raise ConflictError(msg)
        return existing, False
    if version != project.policy_version + 1:
        msg = f"the next version of the policy is {project.policy_version + 1}, not {version}"
        raise ConflictError(msg)
    scales = scales_of(session, project.base_upload)
    if policy.scales not in {None, scales}:
        has = f"has the scales file {scales}" if scales else "was created without a scales file"
        msg = f"{project.id} {has}, and a policy can name no other; create a project with other scales"
        raise ConflictError(msg)
    require_scales(policy)
    row = add_policy(session, project.id, version, policy, now)
    project.policy_version = version
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="policy.publish",
        subject=project.id,
        details={"version": version, "digest": row.digest},
    )
    return row, True


def require_scales(policy: Policy) -> None:
    """Require that a policy names the scales that it needs; raises PolicyViolationError."""
    if policy.scales is not None:
        return
    if policy.differential_privacy is not None:
        msg = "differential_privacy needs the project's scales file, which bounds what one text may weigh (scales)"
        raise PolicyViolationError(msg)
    if policy.aggregation == "secure" and "regmean" in policy.methods:
        msg = (
            "regmean with aggregation: secure needs the project's scales file, by which precisions are divided before "
            "they are summed: `gramfuse scales collect`, then `project create --scales FILE`; or leave regmean out"
        )
        raise PolicyViolationError(msg)


def find_policy(session: Session, project: str, version: int) -> PolicyRow:
    """Return a version of a project's policy; raises NotFoundError."""
    row = session.get(PolicyRow, (project, version))
    if row is None:
        msg = f"{project} has no version {version} of its policy"
        raise NotFoundError(msg)
    return row


def current_policy(session: Session, project: ProjectRow) -> Policy:
    """Return the rules that hold in a project now."""
    return Policy.parse(find_policy(session, project.id, project.policy_version).document)


def accept_policy(
    session: Session, caller: Caller, project: ProjectRow, digest: str, signed: SignedAcceptance, now: datetime
) -> tuple[AcceptanceRow, bool]:
    """Record that the caller's organization accepts the current policy; tell whether it is new. `project` is locked.

    The first acceptance registers the organization's identity key in the project; later ones are signed by the same.

    Raises:
        ConflictError: the digest is not the current version's, or another participant has this identity key.
        RequestMalformedError: the acceptance is of something else than the address says.
        SignatureInvalidError: the key that it names did not sign it.
        IdentityChangedError: another key is registered for the organization.
    """
    organization = caller.require_organization()
    current = find_policy(session, project.id, project.policy_version)
    if digest != current.digest:
        msg = f"the current policy of {project.id} is version {current.version}, {current.digest}; read and accept that"
        raise ConflictError(msg, version=current.version, digest=current.digest)
    acceptance = signed.acceptance
    expected = PolicyAcceptance(
        project=project.id,
        organization=organization,
        policy=PolicyReference(version=current.version, digest=current.digest),
        identity=acceptance.identity,
    )
    if acceptance != expected:
        msg = f"the acceptance is not that of {organization} of version {current.version} of the policy of {project.id}"
        raise RequestMalformedError(msg)
    if not is_signed(acceptance, signed.signature, acceptance.identity):
        msg = "the acceptance is not signed by the identity key that it names"
        raise SignatureInvalidError(msg)
    participant = session.get_one(ParticipantRow, (project.id, organization))
    _require_own_identity(session, participant, acceptance.identity)
    values = {
        "project": project.id,
        "version": current.version,
        "organization": organization,
        "identity": acceptance.identity,
        "digest": digest,
        "signature": signed.signature,
        "token": caller.token,
        "accepted_at": now,
    }
    insert_if_absent(session, AcceptanceRow, values)
    new = participant.accepted_version != current.version
    if new:
        participant.accepted_version, participant.identity = current.version, acceptance.identity
        audit_log.append_for(
            session,
            caller,
            at=now,
            action="policy.accept",
            subject=project.id,
            details={"version": current.version, "digest": digest, "identity": acceptance.identity},
        )
    return session.get_one(AcceptanceRow, (project.id, current.version, organization, acceptance.identity)), new


def reset_identity(session: Session, caller: Caller, project: ProjectRow, organization: str, now: datetime) -> None:
    """Forget a participant's identity key: it joins again with another. Twice is the same as once.

    Raises:
        RoleRequiredError: the caller does not coordinate the project.
        NotFoundError: the organization does not take part.
    """
    caller.require_coordinator(project.coordinator)
    participant = session.get(ParticipantRow, (project.id, organization))
    if participant is None:
        msg = f"{organization} does not take part in {project.id}"
        raise NotFoundError(msg)
    if participant.identity is None:
        return
    forgotten, participant.identity, participant.accepted_version = participant.identity, None, None
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="identity.reset",
        subject=project.id,
        details={"organization": organization, "identity": forgotten},
    )


def policy_document(row: PolicyRow) -> PolicyVersion:
    """Return a policy version as it travels."""
    return PolicyVersion(
        version=row.version, digest=row.digest, policy=Policy.parse(row.document), created_at=row.created_at
    )


def acceptance_document(row: AcceptanceRow) -> Acceptance:
    """Return an acceptance as it travels."""
    return Acceptance(
        organization=row.organization,
        policy=PolicyReference(version=row.version, digest=row.digest),
        identity=row.identity,
        token=row.token,
        accepted_at=row.accepted_at,
    )


def _require_own_identity(session: Session, participant: ParticipantRow, identity: str) -> None:
    if participant.identity not in {None, identity}:
        msg = (
            f"{participant.organization} is registered in {participant.project} with another identity key, "
            f"{fingerprint_of(participant.identity or '')}. Use that one's home, or have the coordinator reset it"
        )
        raise IdentityChangedError(msg, registered=participant.identity)
    others = select(ParticipantRow.identity).where(
        ParticipantRow.project == participant.project, ParticipantRow.organization != participant.organization
    )
    if identity in session.scalars(others):
        msg = "another participant has this identity key; each organization has a home, and so a key, of its own"
        raise ConflictError(msg)


def add_policy(session: Session, project: str, version: int, policy: Policy, now: datetime) -> PolicyRow:
    """Store a version of a project's policy."""
    row = PolicyRow(
        project=project,
        version=version,
        digest=policy.content_digest(),
        document=policy.canonical().decode(),
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row
