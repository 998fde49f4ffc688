"""Jobs: submitted, watched, cancelled and retried."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.api.context import (
    CallerOf,
    JobPath,
    ProjectPath,
    Services,
    ServicesOf,
    authenticated,
    declares,
)
from gramfuse_server.api.paging import PageOf
from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.database import reading, transaction
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.listing import paginate
from gramfuse_server.merging import orders
from gramfuse_server.merging.documents import diagnostics_document, find_job, job_documents, log_entry
from gramfuse_server.merging.members import outdated_members
from gramfuse_server.tables import JobLogRow, JobRow
from gramfuse_shared.contract.diagnostics import JobDiagnostics
from gramfuse_shared.contract.http_api import Job, JobCreate, JobLogEntry, Page, SubmittedJob
from gramfuse_shared.errors import (
    CohortFrozenError,
    ConflictError,
    GramfuseError,
    PolicyNotAcceptedError,
    PolicyViolationError,
    QuotaExceededError,
    RecipeInvalidError,
    StateError,
)

router = APIRouter(prefix="/v1/projects/{project}/jobs", tags=["jobs"])

LOOK_SECONDS: Final = 0.5
HEARTBEAT_SECONDS: Final = 10.0

_EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Server-sent events `job`, each with a Job as JSON, on each change; the last is the final one",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.put(
    "/{job}",
    status_code=201,
    responses=declares(
        ConflictError,
        StateError,
        RecipeInvalidError,
        PolicyViolationError,
        CohortFrozenError,
        PolicyNotAcceptedError,
        QuotaExceededError,
    )
    | {200: {"model": SubmittedJob, "description": "It was submitted before, with the same body"}},
)
def submit_job(
    project: ProjectPath, job: JobPath, body: JobCreate, response: Response, services: ServicesOf, caller: CallerOf
) -> SubmittedJob:
    """Submit a job (coordinator): the cohort is chosen now, and the job is in the queue when this answers."""
    with transaction(services.database) as session:
        row, new = orders.submit(
            session,
            caller,
            project,
            job,
            body,
            queue=services.jobs,
            settings=services.settings,
            now=services.clock(),
        )
        response.status_code = 201 if new else 200
        outdated = () if new else outdated_members(session, row)
        return SubmittedJob(**dict(_document(session, row)), new=new, outdated=outdated)


@router.get("", responses=declares())
def list_jobs(project: ProjectPath, services: ServicesOf, caller: CallerOf, page: PageOf) -> Page[Job]:
    """List the project's jobs, the newest first."""
    with reading(services.database) as session:
        row = visible_project(session, caller, project)
        query = select(JobRow).where(JobRow.project == row.id)
        rows, cursor = paginate(session, query, page, by=[JobRow.created_at, JobRow.id], descending=True)
        return Page(items=tuple(job_documents(session, rows)), next_cursor=cursor)


@router.get("/{job}", responses=declares())
def get_job(project: ProjectPath, job: JobPath, services: ServicesOf, caller: CallerOf) -> Job:
    """A job: its state, stage, progress, rate and estimate."""
    return _look(services, caller, project, job)


@router.get("/{job}/events", response_class=StreamingResponse, responses=declares() | _EVENTS)
async def watch_job(
    project: ProjectPath, job: JobPath, request: Request, services: ServicesOf, caller: CallerOf
) -> StreamingResponse:
    """Watch a job by server-sent events, until it has ended."""
    first = await run_in_threadpool(_look, services, caller, project, job)
    return StreamingResponse(
        _events(request, services, project, first),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/{job}/log", responses=declares())
def read_log(
    project: ProjectPath, job: JobPath, services: ServicesOf, caller: CallerOf, page: PageOf
) -> Page[JobLogEntry]:
    """The job's history, over all attempts."""
    with reading(services.database) as session:
        row = find_job(session, visible_project(session, caller, project).id, job)
        query = select(JobLogRow).where(JobLogRow.project == row.project, JobLogRow.job == row.id)
        rows, cursor = paginate(session, query, page, by=[JobLogRow.sequence])
        return Page(items=tuple(log_entry(entry) for entry in rows), next_cursor=cursor)


@router.get("/{job}/diagnostics", responses=declares())
def read_diagnostics(project: ProjectPath, job: JobPath, services: ServicesOf, caller: CallerOf) -> JobDiagnostics:
    """What the job tells of its layers: condition, gain over the average, spread, and the caller's own distance."""
    with reading(services.database) as session:
        row = find_job(session, visible_project(session, caller, project).id, job)
        return diagnostics_document(session, row, caller.organization)


@router.post("/{job}/cancel", responses=declares(StateError))
def cancel_job(project: ProjectPath, job: JobPath, services: ServicesOf, caller: CallerOf) -> Job:
    """Cancel a job (coordinator). The worker stops at the next task boundary; nothing will be published."""
    with transaction(services.database) as session:
        row = orders.cancel(session, caller, project, job, queue=services.jobs, now=services.clock())
        return _document(session, row)


@router.post(
    "/{job}/retry",
    responses=declares(StateError, PolicyViolationError, CohortFrozenError, PolicyNotAcceptedError, QuotaExceededError),
)
def retry_job(project: ProjectPath, job: JobPath, services: ServicesOf, caller: CallerOf) -> Job:
    """Start a new attempt at a failed or cancelled job (coordinator), over the same cohort."""
    with transaction(services.database) as session:
        row = orders.retry(
            session,
            caller,
            project,
            job,
            queue=services.jobs,
            settings=services.settings,
            now=services.clock(),
        )
        return _document(session, row)


def _document(session: Session, row: JobRow) -> Job:
    return job_documents(session, [row])[0]


def _look(services: Services, caller: Caller, project: str, job: str) -> Job:
    with reading(services.database) as session:
        return _document(session, find_job(session, visible_project(session, caller, project).id, job))


def _look_again(services: Services, authorization: str | None, project: str, job: str) -> Job | None:
    """Look as `_look` does; None where the token no longer may."""
    try:
        return _look(services, authenticated(services, authorization), project, job)
    except GramfuseError:
        return None


async def _events(request: Request, services: Services, project: str, job: Job) -> AsyncIterator[str]:
    """Yield the job on each change until it has ended. Every look is in a thread and checks the token again."""
    authorization = request.headers.get("authorization")
    yield f"event: job\ndata: {job.model_dump_json()}\n\n"
    sent = time.monotonic()
    while job.state in UNFINISHED:
        await asyncio.sleep(LOOK_SECONDS)
        found = await run_in_threadpool(_look_again, services, authorization, project, job.id)
        if found is None:
            return
        if found != job:
            job, sent = found, time.monotonic()
            yield f"event: job\ndata: {job.model_dump_json()}\n\n"
        elif time.monotonic() - sent >= HEARTBEAT_SECONDS:
            sent = time.monotonic()
            yield ": still here\n\n"
