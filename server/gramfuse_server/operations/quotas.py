"""What a project may hold, changed by operators, by the API or the dashboard."""

from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, require_living
from gramfuse_server.intake.uploads import quota_of, used_bytes
from gramfuse_server.operations.projects import find_project
from gramfuse_server.settings import Settings
from gramfuse_server.tables import ProjectRow
from gramfuse_shared.contract.operators import QuotaChange
from gramfuse_shared.errors import ConflictError


def change_quota(
    session: Session, caller: Caller, project: str, change: QuotaChange, *, settings: Settings, now: datetime
) -> ProjectRow:
    """Give a project a quota of its own, or none. The same change twice is as once.

    Raises:
        RoleRequiredError: the caller is no operator.
        NotFoundError: there is no such project.
        StateError: it was deleted.
        ConflictError: it holds more than that, and the change does not say that it may.
    """
    caller.require_operator()
    row = find_project(session, project, lock=True)
    require_living(row)
    if row.quota_bytes == change.bytes:
        return row
    before, row.quota_bytes = quota_of(row, settings), change.bytes
    quota, held = quota_of(row, settings), used_bytes(session, project)
    if held > quota and not change.below_held:
        msg = f"{project} holds {held} bytes, more than {quota}; say below_held if it shall keep them and get no more"
        raise ConflictError(msg, held=held, quota=quota)
    details = {"bytes": change.bytes, "quota": quota, "before": before}
    audit_log.append_for(session, caller, at=now, action="project.quota", subject=project, details=details)
    return row
