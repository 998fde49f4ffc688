"""Whose work goes first, changed by operators, by the API or the dashboard."""

from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller
from gramfuse_server.merging import submission
from gramfuse_server.merging.documents import find_job
from gramfuse_server.tables import JobRow
from gramfuse_shared.contract.operators import Priority


def prioritize(session: Session, caller: Caller, project: str, job: str, priority: Priority, now: datetime) -> JobRow:
    """Have a job go before or behind others. The same twice is as once.

    Raises:
        RoleRequiredError: the caller is no operator.
        NotFoundError: there is no such job.
        StateError: it has its model.
    """
    caller.require_operator()
    row = find_job(session, project, job, lock=True)
    if submission.set_priority(session, row, priority, now):
        details = {"priority": priority}
        audit_log.append_for(
            session, caller, at=now, action="job.prioritize", subject=f"{project}/{job}", details=details
        )
    return row
