"""Contributions: what is checked before a byte of one travels, how members see it, and its withdrawal."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, not_, or_, select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, require_accepted_policy
from gramfuse_server.intake.audit_summaries import sharing_audits
from gramfuse_server.intake.policies import find_policy
from gramfuse_server.intake.projects import base_of, require_ready
from gramfuse_server.intake.uploads import create_upload, files_of, lock_upload, require_open, shown_state
from gramfuse_server.jobs import JobQueue
from gramfuse_server.settings import Settings
from gramfuse_server.standing import weigh
from gramfuse_server.tables import AskedRow, ContributionRow, ParticipantRow, ProjectRow, UploadRow
from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.http_api import ContributionDetail
from gramfuse_shared.contract.identity import SIGNATURE_HEADER, statement_of
from gramfuse_shared.contract.manifest import ContributionManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.rules import require_architecture, require_policy
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    DigestMismatchError,
    NotFoundError,
    PolicyNotAcceptedError,
    PolicyViolationError,
    RequestMalformedError,
    RoleRequiredError,
    SignatureInvalidError,
    StateError,
)
from gramfuse_shared.signatures import is_signed


def create_contribution(
    session: Session,
    caller: Caller,
    project: ProjectRow,
    digest: str,
    manifest: ContributionManifest,
    *,
    signature: str | None,
    settings: Settings,
    now: datetime,
) -> tuple[ContributionRow, bool]:
    """Open a contribution, if its manifest may be uploaded at all; tell whether it is new. Lock the project first.

    Checked in this order:
      1. the manifest's digest is its id, and it names this project and the caller's organization,
      2. an existing one is returned as it is,
      3. the base model is ready, and it is the manifest's,
      4. the current policy is accepted, and the manifest was made under it and signed by who accepted,
      5. names, shapes, dtypes and widths fit the base,
      6. the policy allows all of it to leave,
      7. what is summed in secret was never sent in the open, nor the other way round,
      8. the quota has room. Where the policy sums in secret the manifest is all: it is accepted at once, or at its seal
         where the summary of its audit comes before.

    Raises:
        DigestMismatchError, RequestMalformedError: 1.
        StateError, ArchitectureMismatchError: 3, and 5.
        PolicyNotAcceptedError, SignatureInvalidError: 4.
        PolicyViolationError: 6, 7.
        QuotaExceededError, TooLargeError: 8.
    """
    # 1.
    if manifest.content_digest() != digest:
        msg = f"the manifest's digest is {manifest.content_digest()}, not {digest}"
        raise DigestMismatchError(msg)
    organization = caller.require_organization()
    if manifest.project != project.id or manifest.organization != organization:
        msg = f"the manifest is of {manifest.organization} in {manifest.project}, not of {organization} in {project.id}"
        raise RequestMalformedError(msg)
    # 2.
    existing = session.get(ContributionRow, digest)
    if existing is not None:
        return existing, False
    # 3.
    require_ready(session, project, now)
    if manifest.base != project.base_digest:
        msg = f"the contribution was made for base {manifest.base}, the project's is {project.base_digest}"
        raise ArchitectureMismatchError(msg)
    # 4.
    require_accepted_policy(session, caller, project)
    policy = find_policy(session, project.id, project.policy_version)
    if (manifest.policy.version, manifest.policy.digest) != (policy.version, policy.digest):
        msg = f"the contribution was made under version {manifest.policy.version}, the current one is {policy.version}"
        raise PolicyNotAcceptedError(msg, project=project.id, version=policy.version)
    identity = _require_signed(session, manifest, signature)
    # 5.
    base = base_of(project)
    require_architecture(manifest, base)
    # 6.
    rules = Policy.parse(policy.document)
    require_policy(manifest, base, rules)
    # 7.
    secret = rules.aggregation == "secure"
    _require_other_weights(session, manifest, secret=secret)
    # 8.
    files = () if secret else manifest.files
    upload = create_upload(session, kind="contribution", project=project.id, files=files, settings=settings, now=now)
    if secret and rules.audit == "private":
        _accept_manifest(upload, now)
    row = ContributionRow(
        id=digest,
        project=project.id,
        organization=organization,
        upload=upload.id,
        manifest=manifest.canonical().decode(),
        policy_version=policy.version,
        identity=identity,
        signature=signature,
        created_at=now,
    )
    session.add(row)
    session.flush()
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="contribution.create",
        subject=project.id,
        details={"contribution": digest, "bytes": upload.bytes, "identity": identity, "signature": signature},
    )
    return row, True


def seal_manifest(session: Session, caller: Caller, row: ContributionRow, now: datetime) -> None:
    """Accept a contribution of which the manifest is all, for it is summed in secret; one that is stays as it is.

    Raises:
        StateError: it was withdrawn or has expired.
    """
    upload = lock_upload(session, row.upload)
    if upload.state == "accepted":
        return
    require_open(upload, now)
    _accept_manifest(upload, now)
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="contribution.seal",
        subject=row.project,
        details={"contribution": row.id, "bytes": upload.bytes},
    )


def _accept_manifest(upload: UploadRow, now: datetime) -> None:
    upload.state, upload.sealed_at, upload.decided_at = "accepted", now, now


def _require_signed(session: Session, manifest: ContributionManifest, signature: str | None) -> str:
    """Return the identity key that accepted the policy, which has to have signed the contribution's statement."""
    identity = session.get_one(ParticipantRow, (manifest.project, manifest.organization)).identity
    if identity is None or signature is None or not is_signed(statement_of(manifest, identity), signature, identity):
        msg = (
            f"the contribution is not signed by the identity key that {manifest.organization} is registered with in "
            f"{manifest.project} ({SIGNATURE_HEADER}); push with the client whose home has it"
        )
        raise SignatureInvalidError(msg)
    return identity


def _require_other_weights(session: Session, manifest: ContributionManifest, *, secret: bool) -> None:
    """Sums hide nothing of weights that are known: the sums of their products tell the Gram matrices (threat model)."""
    rows = session.scalars(
        select(ContributionRow).where(
            ContributionRow.organization == manifest.organization,
            ContributionRow.manifest.contains(manifest.weights.file.sha256),
        )
    )
    for row in rows:
        before = Policy.parse(find_policy(session, row.project, row.policy_version).document).aggregation
        same = ContributionManifest.parse(row.manifest).weights.file.sha256 == manifest.weights.file.sha256
        if same and (before == "secure") != secret:
            how = "sent in the open" if secret else "summed in secret"
            msg = (
                f"these weights were {how} in {row.project}: with the weights known, sums hide nothing of the "
                "statistics. Contribute a model that was trained anew"
            )
            raise PolicyViolationError(msg, contribution=row.id)


def find_contribution(session: Session, project: ProjectRow, contribution: str) -> ContributionRow:
    """Return a contribution to a project; raises NotFoundError."""
    row = session.get(ContributionRow, contribution)
    if row is None or row.project != project.id:
        msg = f"there is no contribution {contribution} to {project.id}"
        raise NotFoundError(msg)
    return row


def own_contribution(session: Session, caller: Caller, project: ProjectRow, contribution: str) -> ContributionRow:
    """Return a contribution of the caller's own organization; raises NotFoundError, RoleRequiredError."""
    row = find_contribution(session, project, contribution)
    if row.organization != caller.organization:
        msg = f"the contribution is {row.organization}'s; only its own organization can change it"
        raise RoleRequiredError(msg)
    return row


def withdraw(
    session: Session,
    actor: audit_log.Actor,
    row: ContributionRow,
    *,
    jobs: JobQueue,
    settings: Settings,
    now: datetime,
) -> None:
    """Withdraw a contribution: no new job uses it, unfinished ones are cancelled, its bytes go after a while.

    That the actor may is the caller's to see to, who also holds the project, so that no two wait for one another.

    Raises:
        StateError: it was rejected or has expired, so there is nothing to withdraw.
    """
    upload = lock_upload(session, row.upload)
    state = shown_state(upload, now)
    if state == "withdrawn":
        return
    if state in {"rejected", "expired"}:
        msg = f"the contribution is {state}; its bytes are deleted anyway"
        raise StateError(msg, state=state)
    upload.state, upload.withdrawn_at = "withdrawn", now
    upload.delete_after = now + settings.deletion_delay
    session.flush()
    cancelled = jobs.cancel_jobs_using(session, contribution=row.id, now=now)
    withdraw_answers(session, row.project, row.organization, delete_after=upload.delete_after, now=now)
    audit_log.append_for(
        session,
        actor,
        at=now,
        action="contribution.withdraw",
        subject=row.project,
        details={"contribution": row.id, "cancelled_jobs": cancelled},
    )


def withdrawable(session: Session, project: str, organization: str | None, now: datetime) -> list[ContributionRow]:
    """Return what an organization, or everybody, can still withdraw from a project, the oldest first."""
    query = (
        select(ContributionRow)
        .join(UploadRow, UploadRow.id == ContributionRow.upload)
        .where(
            ContributionRow.project == project, or_(*(state_is(state, now) for state in ("open", "sealed", "accepted")))
        )
        .order_by(ContributionRow.created_at, ContributionRow.id)
    )
    if organization is not None:
        query = query.where(ContributionRow.organization == organization)
    return list(session.scalars(query))


def withdraw_answers(
    session: Session, project: str, organization: str, *, delete_after: datetime, now: datetime
) -> None:
    """Withdraw what an organization answered to the server alone: it is about merges of what it withdraws.

    Files go after a while; histograms and what was announced, which have no file, are forgotten at once.
    """
    places = select(AskedRow).where(AskedRow.project == project, AskedRow.organization == organization)
    for place in session.scalars(places.where(AskedRow.upload.is_(None), AskedRow.answer.is_not(None))):
        answer = Answer.parse(place.answer or "")
        if answer.histograms is not None or answer.announced:
            place.answer = place.answered_at = None
    uploads = session.scalars(
        select(UploadRow)
        .join(AskedRow, AskedRow.upload == UploadRow.id)
        .where(
            AskedRow.project == project,
            AskedRow.organization == organization,
            UploadRow.state.in_(("open", "sealed", "accepted")),
        )
        .with_for_update(of=UploadRow)
    )
    for upload in uploads:
        upload.state, upload.withdrawn_at = "withdrawn", now
        upload.delete_after = upload.delete_after or delete_after  # of words that go already, not later than they would


def state_is(state: str, now: datetime) -> ColumnElement[bool]:
    """The condition on an upload that `shown_state` shows this state."""
    overdue = and_(UploadRow.state == "open", UploadRow.expires_at <= now)
    if state == "expired":
        return or_(UploadRow.state == "expired", overdue)
    return and_(UploadRow.state == state, not_(overdue))


def contribution_documents(
    session: Session, rows: Sequence[ContributionRow], viewer: str | None, now: datetime, *, manifests: bool = False
) -> list[ContributionDetail]:
    """Return contributions as an organization sees them: reason, files and manifest are its own ones' only."""
    uploads = _uploads(session, [row.upload for row in rows])
    files = files_of(session, [row.upload for row in rows if row.organization == viewer])
    weighed = [weigh(session, project) for project in {row.project for row in rows}]
    counting = {standing.contribution for each in weighed for standing in each.standing}
    passed_over = {contribution: why for each in weighed for contribution, why in each.passed_over.items()}
    sharing = sharing_audits(session, rows)
    documents = []
    for row in rows:
        upload = uploads[row.upload]
        own = row.organization == viewer
        document = {
            "id": row.id,
            "organization": row.organization,
            "state": shown_state(upload, now),
            "counts": row.id in counting,
            "passed_over": passed_over.get(row.id),
            "reason": upload.reason if own else None,
            "policy": {
                "version": row.policy_version,
                "digest": find_policy(session, row.project, row.policy_version).digest,
            },
            "bytes": upload.bytes,
            "created_at": row.created_at,
            "sealed_at": upload.sealed_at,
            "decided_at": upload.decided_at,
            "withdrawn_at": upload.withdrawn_at,
            "shares_audit": (row.project, row.policy_version) in sharing,
            "audit": None if row.audit is None else AuditSummary.parse(row.audit),
            "files": files.get(row.upload, ()),
            "manifest": ContributionManifest.parse(row.manifest) if own and manifests else None,
        }
        documents.append(ContributionDetail.model_validate(document))
    return documents


def _uploads(session: Session, ids: Iterable[str]) -> dict[str, UploadRow]:
    return {row.id: row for row in session.scalars(select(UploadRow).where(UploadRow.id.in_(list(ids))))}
