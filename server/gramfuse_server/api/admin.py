"""The operators' view of everything, as JSON."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select

from gramfuse_server import operations
from gramfuse_server.api.context import OperatorOf, ServicesOf, declares
from gramfuse_server.api.paging import PageOf, paginate
from gramfuse_server.audit_log import entry_of
from gramfuse_server.database import reading
from gramfuse_server.intake.contributions import state_is
from gramfuse_server.intake.projects import project_documents
from gramfuse_server.merging.documents import job_documents
from gramfuse_server.tables import AuditRow, ContributionRow, JobRow, ProjectRow, UploadRow, WorkerRow
from gramfuse_shared.contract.http_api import (
    AdminContribution,
    AuditEntry,
    ContributionState,
    Job,
    JobState,
    Overview,
    Page,
    Project,
    Storage,
    WorkerInfo,
)
from gramfuse_shared.identifiers import ProjectId

router = APIRouter(prefix="/v1/admin", tags=["operators"])

ProjectQuery = Annotated[ProjectId | None, Query()]


@router.get("/overview", responses=declares())
def overview(services: ServicesOf, _: OperatorOf) -> Overview:
    """Counts of everything, and the last failures."""
    with reading(services.database) as session:
        return operations.overview(session, services.clock(), services.settings.worker_lease)


@router.get("/workers", responses=declares())
def list_workers(services: ServicesOf, _: OperatorOf, page: PageOf) -> Page[WorkerInfo]:
    """List the workers, the newest first, with what each is running."""
    with reading(services.database) as session:
        by = [WorkerRow.started_at, WorkerRow.id]
        rows, cursor = paginate(session, select(WorkerRow), page, by=by, descending=True)
        documents = operations.worker_documents(session, rows, services.clock(), services.settings.worker_lease)
        return Page(items=tuple(documents), next_cursor=cursor)


@router.get("/projects", responses=declares())
def list_projects(services: ServicesOf, _: OperatorOf, page: PageOf) -> Page[Project]:
    """List all projects by id."""
    with reading(services.database) as session:
        rows, cursor = paginate(session, select(ProjectRow), page, by=[ProjectRow.id])
        return Page(items=tuple(project_documents(session, rows, services.clock())), next_cursor=cursor)


@router.get("/contributions", responses=declares())
def list_contributions(
    services: ServicesOf,
    _: OperatorOf,
    page: PageOf,
    project: ProjectQuery = None,
    state: Annotated[ContributionState | None, Query()] = None,
) -> Page[AdminContribution]:
    """List all contributions, the newest first."""
    query = select(ContributionRow).join(UploadRow, UploadRow.id == ContributionRow.upload)
    if project is not None:
        query = query.where(ContributionRow.project == project)
    if state is not None:
        query = query.where(state_is(state, services.clock()))
    with reading(services.database) as session:
        by = [ContributionRow.created_at, ContributionRow.id]
        rows, cursor = paginate(session, query, page, by=by, descending=True)
        documents = operations.contribution_documents(session, rows, services.clock())
        return Page(items=tuple(documents), next_cursor=cursor)


@router.get("/jobs", responses=declares())
def list_jobs(
    services: ServicesOf,
    _: OperatorOf,
    page: PageOf,
    project: ProjectQuery = None,
    state: Annotated[JobState | None, Query()] = None,
) -> Page[Job]:
    """List all jobs, the newest first."""
    query = select(JobRow)
    if project is not None:
        query = query.where(JobRow.project == project)
    if state is not None:
        query = query.where(JobRow.state == state)
    with reading(services.database) as session:
        by = [JobRow.created_at, JobRow.project, JobRow.id]
        rows, cursor = paginate(session, query, page, by=by, descending=True)
        return Page(items=tuple(job_documents(session, rows)), next_cursor=cursor)


@router.get("/storage", responses=declares())
def storage(services: ServicesOf, _: OperatorOf) -> Storage:
    """What the blob store holds, by the database's account."""
    with reading(services.database) as session:
        return operations.storage(session)


@router.get("/audit-log", responses=declares())
def read_audit_log(services: ServicesOf, _: OperatorOf, page: PageOf) -> Page[AuditEntry]:
    """The audit log, the newest row first."""
    with reading(services.database) as session:
        rows, cursor = paginate(session, select(AuditRow), page, by=[AuditRow.sequence], descending=True)
        return Page(items=tuple(entry_of(row) for row in rows), next_cursor=cursor)
