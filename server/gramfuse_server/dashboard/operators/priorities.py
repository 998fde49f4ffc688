"""The page on which operators have a job go before or behind others."""

from collections.abc import Mapping
from typing import Any, Final, get_args

from starlette.requests import Request

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.forms import Form, Led, Shown
from gramfuse_server.dashboard.sources import Sources, job_in, project_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.merging.documents import find_job
from gramfuse_server.operations.merges import job_with_attempts
from gramfuse_server.operations.priorities import prioritize
from gramfuse_server.operations.projects import find_project
from gramfuse_shared.contract.operators import Priority
from gramfuse_shared.errors import GramfuseError, RequestMalformedError

PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)


def read_priority(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read the job whose priority is about to be changed."""
    return _told(sources, request) | {"message": None}


def change(sources: Sources, form: Form) -> Led | Shown:
    """Change the priority; a form that cannot be followed is shown again, with why."""
    form.caller.require_operator()
    project, job = project_in(form.request), job_in(form.request)
    try:
        wanted = _priority_in(form.fields)
        with transaction(sources.database) as session:
            prioritize(session, form.caller, project, job, wanted, sources.clock())
    except GramfuseError as error:
        values = _told(sources, form.request) | {"message": error.message}
        return Shown("operators/priority.html", error.status, values)
    return Led(f"jobs/{project}/{job}")


def _told(sources: Sources, request: Request) -> dict[str, Any]:
    with reading(sources.database) as session:
        row = find_job(session, find_project(session, project_in(request)).id, job_in(request))
        return {"job": job_with_attempts(session, row), "priorities": PRIORITIES}


def _priority_in(fields: Mapping[str, str]) -> Priority:
    wanted = fields.get("priority", "")
    if wanted not in PRIORITIES:
        msg = f"priority must be one of {', '.join(PRIORITIES)}"
        raise RequestMalformedError(msg)
    return wanted
