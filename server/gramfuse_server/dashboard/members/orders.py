"""What a coordinator orders of jobs in a browser: a merge, and after a question its end or another attempt."""

import re
from collections.abc import Mapping
from itertools import count
from typing import Any, Final

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request

from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.dashboard.forms import Form, Led, Shown
from gramfuse_server.dashboard.sources import Sources, job_in, project_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.merging import orders
from gramfuse_server.merging.documents import find_job, job_documents
from gramfuse_server.merging.members import outdated_members
from gramfuse_server.standing import standing_contributions
from gramfuse_server.tables import JobRow
from gramfuse_shared.contract.http_api import JobCreate
from gramfuse_shared.contract.recipe import PARAMETERS_OF, REFIT_METHODS, parse_recipe
from gramfuse_shared.errors import ConflictError, GramfuseError, RecipeInvalidError, RequestMalformedError
from gramfuse_shared.identifiers import IN_WORDS, JOB_PATTERN

MEMBER: Final = "member:"
"""Before an organization's name, the field of a form that takes its contribution."""


def read_order(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read what a job can be made of; raises RoleRequiredError unless the caller coordinates the project."""
    with reading(sources.database) as session:
        return _choices(session, project_in(request), caller) | {"filled": {}, "message": None}


def order(sources: Sources, form: Form) -> Led | Shown:
    """Submit a job; a form that makes none is shown again, with what was filled in and why."""
    project, job = project_in(form.request), form.fields.get("job", "")
    try:
        _require_job_id(job)
        with transaction(sources.database) as session:
            body = JobCreate(recipe=parse_recipe(_recipe_text(session, project, form)))
            row, new = orders.submit(
                session,
                form.caller,
                project,
                job,
                body,
                queue=sources.queue,
                settings=sources.settings,
                now=sources.clock(),
            )
            if not new:
                _require_up_to_date(session, row)
    except GramfuseError as error:
        with reading(sources.database) as session:
            values = _choices(session, project, form.caller) | {"filled": form.fields, "message": error.message}
        return Shown("members/order.html", error.status, values)
    return Led(f"jobs/{project}/{job}")


def read_job_to_change(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the job that is about to be cancelled or tried again."""
    with reading(sources.database) as session:
        owner = visible_project(session, caller, project_in(request))
        caller.require_coordinator(owner.coordinator)
        (job,) = job_documents(session, [find_job(session, owner.id, job_in(request))])
        return {"job": job}


def cancel(sources: Sources, form: Form) -> Led:
    """Cancel a job."""
    project, job = project_in(form.request), job_in(form.request)
    with transaction(sources.database) as session:
        orders.cancel(session, form.caller, project, job, queue=sources.queue, now=sources.clock())
    return Led(f"jobs/{project}/{job}")


def retry(sources: Sources, form: Form) -> Led:
    """Try a job again."""
    project, job, settings = project_in(form.request), job_in(form.request), sources.settings
    with transaction(sources.database) as session:
        now = sources.clock()
        orders.retry(session, form.caller, project, job, queue=sources.queue, settings=settings, now=now)
    return Led(f"jobs/{project}/{job}")


def _choices(session: Session, project: str, caller: Caller) -> dict[str, Any]:
    owner = visible_project(session, caller, project)
    caller.require_coordinator(owner.coordinator)
    policy = current_policy(session, owner)
    methods = [method for method in policy.methods if method not in REFIT_METHODS]
    methods.sort(key=lambda method: method != "regmean")  # the first one is chosen unless somebody chooses
    return {
        "project": owner.id,
        "policy": policy,
        "methods": [(method, PARAMETERS_OF[method]) for method in methods],
        "members": sorted(standing.organization for standing in standing_contributions(session, owner.id)),
        "prefix": MEMBER,
        "free": _free_job_id(session, owner.id, methods[0] if methods else "merge"),
    }


def _free_job_id(session: Session, project: str, method: str) -> str:
    """Return the first of `regmean-1`, `regmean-2`, … that no job of the project has."""
    taken = set(session.scalars(select(JobRow.id).where(JobRow.project == project, JobRow.id.startswith(f"{method}-"))))
    return next(name for number in count(1) if (name := f"{method}-{number}") not in taken)


def _require_up_to_date(session: Session, job: JobRow) -> None:
    """Require that a job that was there already is of the contributions that the form would merge now.

    Raises:
        ConflictError: it is of others; a form that is sent twice leads to the one job all the same.
    """
    outdated = outdated_members(session, job)
    if outdated:
        msg = (
            f"job {job.id} is there already, submitted {job.created_at:%Y-%m-%d %H:%M} UTC, and what "
            f"{', '.join(outdated)} contributed has changed since; give a new merge another name"
        )
        raise ConflictError(msg, outdated=outdated)


def _recipe_text(session: Session, project: str, form: Form) -> str:
    """Write the recipe that a form describes: with everybody's contribution it names no models, as people write it."""
    recipe: dict[str, Any] = {"merge_method": form.fields.get("method", "")}
    chosen = sorted(name.removeprefix(MEMBER) for name in form.fields if name.startswith(MEMBER))
    if not chosen:
        msg = "choose the contributions that are to be merged"
        raise RecipeInvalidError(msg)
    if chosen != sorted(standing.organization for standing in standing_contributions(session, project)):
        recipe["models"] = [{"model": name} for name in chosen]
    text = str(yaml.safe_dump(recipe))
    parameters = form.fields.get("parameters", "").strip()
    if parameters:
        text += "parameters:\n" + "\n".join(f"  {line}" for line in parameters.splitlines())
    return text


def _require_job_id(job: str) -> None:
    if re.fullmatch(JOB_PATTERN, job) is None:
        msg = f"a job's name is {IN_WORDS[JOB_PATTERN]}"
        raise RequestMalformedError(msg)
