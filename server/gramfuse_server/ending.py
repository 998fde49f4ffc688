"""What ends for good: a project, deleted, and an organization's part in one, by its own will or the coordinator's.

Both withdraw what was given by the functions by which an organization withdraws it itself, so that what is said of a
withdrawal holds here too: unfinished jobs are cancelled and can publish nothing, bytes go after the deletion delay, and
cohorts that were frozen by a release stay frozen.
"""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller
from gramfuse_server.intake.contributions import withdraw, withdraw_answers, withdrawable
from gramfuse_server.intake.uploads import lock_upload
from gramfuse_server.jobs import UNFINISHED, JobQueue
from gramfuse_server.merging.model_files import delete_files
from gramfuse_server.requests.asking import cancel
from gramfuse_server.requests.documents import progress
from gramfuse_server.settings import Settings
from gramfuse_server.tables import (
    AcceptanceRow,
    AskedRow,
    JobRow,
    ModelRow,
    ParticipantRow,
    ProjectRow,
    RequestRow,
    UploadRow,
)
from gramfuse_shared.errors import StateError

_HELD = ("open", "sealed", "accepted")


def delete_project(
    session: Session,
    actor: audit_log.Actor,
    project: ProjectRow,
    *,
    queue: JobQueue,
    settings: Settings,
    now: datetime,
) -> None:
    """Delete a project, whoever may; it is locked. Twice is the same as once.

    Jobs and requests end, contributions and answers are withdrawn, models' files deleted, and the base is given up:
    sweeps delete all of these bytes. Names, policies, acceptances, manifests, scores, receipts and the audit log stay.
    """
    if project.deleted_at is not None:
        return
    _hold(session, project)
    project.deleted_at = now
    # before the models: a job that was just being published has one now, and no other will
    jobs = queue.cancel_jobs_of(session, project=project.id, now=now, reason="cancelled: the project was deleted")
    requests = _cancel_requests(session, actor, project, now)
    contributions = _withdraw(session, actor, project, None, queue=queue, settings=settings, now=now)
    models = session.scalars(
        select(ModelRow)
        .where(ModelRow.project == project.id, ModelRow.deleted_at.is_(None))
        .order_by(ModelRow.id)
        .with_for_update()
    ).all()
    for model in models:
        delete_files(session, actor, model, now)
    base = lock_upload(session, project.base_upload)
    if base.state in _HELD:
        base.state, base.withdrawn_at, base.delete_after = "withdrawn", now, now + settings.deletion_delay
    session.flush()
    details = {
        "cancelled_jobs": jobs,
        "cancelled_requests": requests,
        "contributions": contributions,
        "models": [model.id for model in models],
    }
    audit_log.append_for(session, actor, at=now, action="project.delete", subject=project.id, details=details)


def end_membership(
    session: Session,
    caller: Caller,
    project: ProjectRow,
    organization: str,
    *,
    joined: bool,
    queue: JobQueue,
    settings: Settings,
    now: datetime,
) -> None:
    """End an organization's part in a project, which is locked: its own, or by the coordinator. Twice is as once.

    Args:
        session: the transaction.
        caller: who ends it.
        project: the project.
        organization: whose part ends.
        joined: whether also if it has joined. Then what it gave is withdrawn; what it signed stays.
        queue: of the jobs that use what is withdrawn.
        settings: the server's.
        now: the present.

    Raises:
        RoleRequiredError: it is another organization's, and the caller does not coordinate the project.
        StateError: it coordinates the project, or has joined and `joined` does not allow for it.
    """
    if organization != caller.organization:
        caller.require_coordinator(project.coordinator)
    participant = session.get(ParticipantRow, (project.id, organization))
    if participant is None:
        return
    if organization == project.coordinator:
        msg = (
            f"{organization} coordinates {project.id} and cannot leave; `gramfuse project delete {project.id}` ends it"
        )
        raise StateError(msg, state="coordinator")
    has_joined = _has_joined(session, participant, now)
    if has_joined and not joined:
        msg = (
            f"{organization} has joined {project.id}; an invitation is taken back while nobody has accepted it. "
            f"`gramfuse project remove {project.id} {organization}` withdraws what it contributed and ends its part"
        )
        raise StateError(msg, state="joined")
    _hold(session, project)
    contributions = _withdraw(session, caller, project, organization, queue=queue, settings=settings, now=now)
    session.delete(participant)
    session.flush()
    if organization == caller.organization:
        action = "project.leave"
    else:
        action = "project.remove" if has_joined else "project.uninvite"
    details = {"organization": organization} | ({"contributions": contributions} if has_joined else {})
    audit_log.append_for(session, caller, at=now, action=action, subject=project.id, details=details)


def _has_joined(session: Session, participant: ParticipantRow, now: datetime) -> bool:
    """Tell whether an organization accepted a policy since it was invited, its key reset or not, or sent something.

    What it accepted in a membership of before stands recorded, too, and does not count.
    """
    if participant.accepted_version is not None:
        return True
    since = select(AcceptanceRow.version).where(
        AcceptanceRow.project == participant.project,
        AcceptanceRow.organization == participant.organization,
        AcceptanceRow.accepted_at >= participant.invited_at,
    )
    return session.scalars(since).first() is not None or bool(
        withdrawable(session, participant.project, participant.organization, now)
    )


def _hold(session: Session, project: ProjectRow) -> None:
    """Hold the rows that workers change and then note in the audit log, before its end is held by the first note.

    Else a worker that holds one of them waits for the log's end, and who holds that waits for the row.
    """
    for query in (
        select(JobRow).where(JobRow.project == project.id, JobRow.state.in_(UNFINISHED)).order_by(JobRow.id),
        select(UploadRow).where(UploadRow.project == project.id, UploadRow.state.in_(_HELD)).order_by(UploadRow.id),
    ):
        session.scalars(query.with_for_update().execution_options(populate_existing=True)).all()


def _cancel_requests(session: Session, actor: audit_log.Actor, project: ProjectRow, now: datetime) -> list[str]:
    unended = session.scalars(
        select(RequestRow)
        .where(RequestRow.project == project.id, RequestRow.cancelled_at.is_(None))
        .order_by(RequestRow.created_at, RequestRow.id)
    ).all()
    still_open = [row for row in unended if progress(session, row, now).state == "open"]
    for row in still_open:
        cancel(session, actor, row, now=now)
    return [row.id for row in still_open]


def _withdraw(
    session: Session,
    actor: audit_log.Actor,
    project: ProjectRow,
    organization: str | None,
    *,
    queue: JobQueue,
    settings: Settings,
    now: datetime,
) -> list[str]:
    """Withdraw what an organization, or everybody, contributed and answered; return the contributions' ids."""
    rows = withdrawable(session, project.id, organization, now)
    for row in rows:
        withdraw(session, actor, row, jobs=queue, settings=settings, now=now)
    # some answer on although they withdrew before: what was answered goes whether or not a contribution does
    asked: Iterable[str] = [organization] if organization is not None else _asked(session, project)
    for name in asked:
        withdraw_answers(session, project.id, name, delete_after=now + settings.deletion_delay, now=now)
    session.flush()
    return [row.id for row in rows]


def _asked(session: Session, project: ProjectRow) -> list[str]:
    return list(session.scalars(select(AskedRow.organization).where(AskedRow.project == project.id).distinct()))
