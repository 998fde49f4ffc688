"""Whose work goes first, changed by operators: by the API, the dashboard or a command."""

from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import require_living
from gramfuse_server.merging import submission
from gramfuse_server.merging.documents import find_job
from gramfuse_server.operations.projects import find_project
from gramfuse_server.tables import JobRow
from gramfuse_shared.contract.operators import Priority


def prioritize(
    session: Session, actor: audit_log.Actor, project: str, job: str, priority: Priority, now: datetime
) -> JobRow:
    """Have a job go before or behind others; that the actor is an operator, or the shell, is the caller's to see to.

    The same twice is as once.

    Raises:
        NotFoundError: there is no such job.
        StateError: it has its model, or its project was deleted.
    """
    row = find_job(session, project, job, lock=True)
    require_living(find_project(session, project))
    if submission.set_priority(session, row, priority, now):
        details = {"priority": priority}
        audit_log.append_for(
            session, actor, at=now, action="job.prioritize", subject=f"{project}/{job}", details=details
        )
    return row
