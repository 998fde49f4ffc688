"""What a coordinator orders of jobs, by the API or the dashboard: rights, room, the order itself, its audit row."""

from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, changeable_project, require_accepted_policy
from gramfuse_server.intake.uploads import ROOM, quota_of, used_bytes
from gramfuse_server.jobs import UNFINISHED, JobQueue
from gramfuse_server.merging import submission
from gramfuse_server.merging.documents import find_job
from gramfuse_server.merging.members import cohort_of
from gramfuse_server.settings import Settings
from gramfuse_server.tables import JobRow, ProjectRow, UploadRow
from gramfuse_shared.contract.http_api import JobCreate
from gramfuse_shared.errors import QuotaExceededError, StateError
from gramfuse_shared.units import format_bytes


def submit(
    session: Session,
    caller: Caller,
    project: str,
    job: str,
    body: JobCreate,
    *,
    queue: JobQueue,
    settings: Settings,
    now: datetime,
) -> tuple[JobRow, bool]:
    """Submit a job, or find it where it was submitted before; tell whether it is new.

    Raises:
        NotFoundError, RoleRequiredError: the caller does not coordinate this project.
        PolicyNotAcceptedError: its organization has not accepted the current policy.
        QuotaExceededError: the model that would come out does not fit.
        GramfuseError: see `submission.submit`.
    """
    owner = _coordinated_project(session, caller, project)
    require_accepted_policy(session, caller, owner)
    row, new = submission.submit(session, owner, caller, job=job, body=body, queue=queue, now=now)
    if new:
        _require_room(session, owner, settings)
        cohort = [member.contribution for member in cohort_of(session, row)]
        subject = f"{project}/{job}"
        audit_log.append_for(session, caller, at=now, action="job.submit", subject=subject, details={"cohort": cohort})
    return row, new


def cancel(session: Session, caller: Caller, project: str, job: str, *, queue: JobQueue, now: datetime) -> JobRow:
    """Cancel a job: the worker stops at the next task boundary, and nothing will be published. Twice is as once.

    Raises:
        NotFoundError, RoleRequiredError: there is no such job, or the caller does not coordinate its project.
        StateError: it has ended otherwise.
    """
    _coordinated_project(session, caller, project)
    row = find_job(session, project, job, lock=True)
    if row.state not in {*UNFINISHED, "cancelled"}:
        msg = f"job {job} has {row.state} already"
        raise StateError(msg, state=row.state)
    reason = f"cancelled by {caller.organization}"
    if queue.cancel(session, project=project, job=job, now=now, reason=reason):
        audit_log.append_for(session, caller, at=now, action="job.cancel", subject=f"{project}/{job}")
    return row


def retry(
    session: Session, caller: Caller, project: str, job: str, *, queue: JobQueue, settings: Settings, now: datetime
) -> JobRow:
    """Start a new attempt at a failed or cancelled job, over the same cohort; one that goes on is left as it is.

    Raises:
        NotFoundError, RoleRequiredError: there is no such job, or the caller does not coordinate its project.
        PolicyNotAcceptedError, QuotaExceededError: as `submit`.
        GramfuseError: see `submission.retry`.
    """
    owner = _coordinated_project(session, caller, project)
    require_accepted_policy(session, caller, owner)
    row = find_job(session, project, job, lock=True)
    if submission.retry(session, owner, row, queue=queue, now=now):
        _require_room(session, owner, settings)
        subject, details = f"{project}/{job}", {"attempt": row.attempt}
        audit_log.append_for(session, caller, at=now, action="job.retry", subject=subject, details=details)
    return row


def _coordinated_project(session: Session, caller: Caller, project: str) -> ProjectRow:
    row = changeable_project(session, caller, project)
    caller.require_coordinator(row.coordinator)
    return row


def _require_room(session: Session, project: ProjectRow, settings: Settings) -> None:
    """Require that the models fit that unfinished jobs will make, this one's included; raises QuotaExceededError."""
    session.flush()
    size = session.get_one(UploadRow, project.base_upload).bytes
    used, quota = used_bytes(session, project.id) - size, quota_of(project, settings)
    if used + size > quota:
        held = f"{project.id} holds {format_bytes(used)} and may hold {format_bytes(quota)}"
        msg = f"{held}: a model of {format_bytes(size)} does not fit. {ROOM}"
        raise QuotaExceededError(msg, used=used, quota=quota, requested=size)
