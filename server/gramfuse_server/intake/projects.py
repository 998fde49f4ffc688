"""Projects: a base model and its participants; their policies are in `policies`."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, require_living
from gramfuse_server.database import insert_if_absent
from gramfuse_server.intake.policies import add_policy, find_policy, require_scales
from gramfuse_server.intake.uploads import (
    create_upload,
    files_of,
    lock_project,
    quota_of,
    scales_of,
    shown_state,
    used_bytes_of,
)
from gramfuse_server.settings import Settings
from gramfuse_server.tables import (
    AcceptanceRow,
    OrganizationRow,
    ParticipantRow,
    PolicyRow,
    ProjectRow,
    UploadRow,
)
from gramfuse_shared.contract.http_api import Participant, Project, ProjectCreate
from gramfuse_shared.contract.manifest import BaseManifest, PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import require_base
from gramfuse_shared.errors import ConflictError, NotFoundError, StateError

_STATE_OF_UPLOAD = {"open": "open", "sealed": "sealed", "accepted": "ready", "rejected": "rejected"}


def create_project(
    session: Session, caller: Caller, project: str, request: ProjectCreate, *, settings: Settings, now: datetime
) -> tuple[ProjectRow, bool]:
    """Create a project, or give one whose base model was rejected or expired another; tell whether it is new.

    Raises:
        RoleRequiredError: the caller is not a coordinator of the organization in the project's name.
        ConflictError: the project exists with another base model or policy.
        StateError: it existed, and was deleted.
        PolicyViolationError, HeaderMalformedError, QuotaExceededError, TooLargeError: the base cannot be uploaded.
    """
    coordinator = project.partition(".")[0]
    caller.require_coordinator(coordinator)
    require_base(request.base)
    session.get_one(OrganizationRow, coordinator, with_for_update=True)  # one creation at a time: no row to lock yet
    existing = lock_project(session, project)
    if existing is not None and not _may_start_again(session, existing, request, now):
        _require_same(session, existing, request)
        return existing, False
    upload = create_upload(session, kind="base", project=project, files=request.files, settings=settings, now=now)
    digest, manifest = request.base.content_digest(), request.base.canonical().decode()
    if existing is not None:
        existing.base_digest, existing.base_manifest, existing.base_upload = digest, manifest, upload.id
    else:
        session.add(
            ProjectRow(
                id=project,
                coordinator=coordinator,
                base_digest=digest,
                base_manifest=manifest,
                base_upload=upload.id,
                policy_version=1,
                created_at=now,
            )
        )
        session.flush()
    row = session.get_one(ProjectRow, project)
    if existing is None:
        session.add(ParticipantRow(project=project, organization=coordinator, invited_at=now))
        require_scales(request.policy)
        add_policy(session, project, 1, request.policy, now)
    else:
        _replace_policy(session, row, request.policy, now)
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="project.create" if existing is None else "project.replace-base",
        subject=project,
        details={"base": digest, "policy": request.policy.content_digest(), "bytes": upload.bytes},
    )
    return row, True


def invite(session: Session, caller: Caller, project: ProjectRow, organization: str, now: datetime) -> bool:
    """Make an organization a participant; tell whether it was not one before.

    Raises:
        RoleRequiredError: the caller does not coordinate the project.
        NotFoundError: there is no such organization.
    """
    caller.require_coordinator(project.coordinator)
    if session.get(OrganizationRow, organization) is None:
        msg = f"there is no organization {organization}; the operator creates organizations"
        raise NotFoundError(msg)
    new = insert_if_absent(
        session,
        ParticipantRow,
        {"project": project.id, "organization": organization, "invited_at": now, "accepted_version": None},
    )
    if new:
        audit_log.append_for(
            session,
            caller,
            at=now,
            action="project.invite",
            subject=project.id,
            details={"organization": organization},
        )
    return new


def require_ready(session: Session, project: ProjectRow, now: datetime) -> None:
    """Raises StateError unless the base model is uploaded and checked, and the project not deleted."""
    require_living(project)
    state = shown_state(session.get_one(UploadRow, project.base_upload), now)
    if state != "accepted":
        msg = f"the base model of {project.id} is {state}, not ready"
        raise StateError(msg, state=_STATE_OF_UPLOAD.get(state, "rejected"))


def base_of(project: ProjectRow) -> BaseManifest:
    """Return the project's base manifest."""
    return BaseManifest.parse(project.base_manifest)


def project_documents(
    session: Session, projects: Sequence[ProjectRow], *, settings: Settings, now: datetime
) -> list[Project]:
    """Return projects as their members see them."""
    ids = [project.id for project in projects]
    uploads = {
        row.id: row
        for row in session.scalars(
            select(UploadRow).where(UploadRow.id.in_([project.base_upload for project in projects]))
        )
    }
    files = files_of(session, uploads)
    used = used_bytes_of(session, ids)
    digests = {
        (row.project, row.version): row.digest
        for row in session.scalars(select(PolicyRow).where(PolicyRow.project.in_(ids)))
    }
    signatures = {
        (row.project, row.version, row.organization, row.identity): row.signature
        for row in session.scalars(select(AcceptanceRow).where(AcceptanceRow.project.in_(ids)))
    }
    participants: dict[str, list[Participant]] = {project: [] for project in ids}
    for row in session.scalars(
        select(ParticipantRow).where(ParticipantRow.project.in_(ids)).order_by(ParticipantRow.organization)
    ):
        accepted = signature = None
        if row.accepted_version is not None:
            digest = digests[row.project, row.accepted_version]
            accepted = PolicyReference(version=row.accepted_version, digest=digest)
            signature = signatures[row.project, row.accepted_version, row.organization, row.identity or ""]
        participants[row.project].append(
            Participant(
                organization=row.organization,
                invited_at=row.invited_at,
                accepted_policy=accepted,
                identity=row.identity,
                signature=signature,
            )
        )
    documents = []
    for project in projects:
        upload = uploads[project.base_upload]
        state = shown_state(upload, now)
        documents.append(
            Project.model_validate(
                {
                    "id": project.id,
                    "coordinator": project.coordinator,
                    "state": _STATE_OF_UPLOAD.get(state, "rejected"),
                    "reason": _reason(project, upload, state),
                    "base": project.base_digest,
                    "policy": {
                        "version": project.policy_version,
                        "digest": digests[project.id, project.policy_version],
                    },
                    "created_at": project.created_at,
                    "deleted_at": project.deleted_at,
                    "participants": tuple(participants[project.id]),
                    "files": files[upload.id],
                    "bytes": used[project.id],
                    "quota": quota_of(project, settings),
                }
            )
        )
    return documents


def _reason(project: ProjectRow, upload: UploadRow, state: str) -> str | None:
    if project.deleted_at is not None:
        return "the project was deleted"
    return upload.reason or ("its parts did not all arrive in time" if state == "expired" else None)


def _may_start_again(session: Session, project: ProjectRow, request: ProjectCreate, now: datetime) -> bool:
    """A base that was rejected may be replaced, or come with other scales; one that expired may be sent again."""
    upload = session.get_one(UploadRow, project.base_upload)
    state = shown_state(upload, now)
    differs = (project.base_digest, scales_of(session, upload.id)) != (
        request.base.content_digest(),
        request.policy.scales,
    )
    return state == "expired" or (state == "rejected" and differs)


def _require_same(session: Session, project: ProjectRow, request: ProjectCreate) -> None:
    first = find_policy(session, project.id, 1)
    if project.base_digest != request.base.content_digest():
        msg = f"{project.id} exists with another base model; choose another name"
        raise ConflictError(msg)
    if first.digest != request.policy.content_digest():
        msg = f"{project.id} exists with another first policy; its next one: `gramfuse project publish {project.id}`"
        raise ConflictError(msg)


def _replace_policy(session: Session, project: ProjectRow, policy: Policy, now: datetime) -> None:
    """A project that starts again with another policy gets it as its next version; acceptances stay as recorded."""
    current = find_policy(session, project.id, project.policy_version)
    if current.digest != policy.content_digest():
        require_scales(policy)
        project.policy_version += 1
        add_policy(session, project.id, project.policy_version, policy, now)
