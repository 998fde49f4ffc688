"""The operators' view of the whole server, as JSON; `admin_projects` has that of one project."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select

from gramfuse_server.api.context import OperatorOf, ServicesOf, declares
from gramfuse_server.api.paging import PageOf
from gramfuse_server.audit_log import entry_of
from gramfuse_server.database import reading
from gramfuse_server.intake.contributions import state_is
from gramfuse_server.listing import newest_rows, paginate
from gramfuse_server.merging.documents import job_documents
from gramfuse_server.operations import counts
from gramfuse_server.operations.audit_search import SEARCH_PATTERN, AuditSearch
from gramfuse_server.operations.merges import admin_models
from gramfuse_server.operations.organizations import organization_documents
from gramfuse_server.operations.projects import admin_requests, contribution_documents, project_documents
from gramfuse_server.operations.throughput import HOURS, MAX_HOURS, throughput
from gramfuse_server.tables import (
    AuditRow,
    ContributionRow,
    JobRow,
    ModelRow,
    OrganizationRow,
    ProjectRow,
    RequestRow,
    UploadRow,
    WorkerRow,
)
from gramfuse_shared.contract.http_api import ContributionState, Job, JobState, Model, Page
from gramfuse_shared.contract.operators import (
    AdminContribution,
    AdminOrganization,
    AdminProject,
    AdminRequest,
    AuditEntry,
    Overview,
    Storage,
    Throughput,
    WorkerInfo,
)
from gramfuse_shared.identifiers import ProjectId

router = APIRouter(prefix="/v1/admin", tags=["operators"])

ProjectQuery = Annotated[ProjectId | None, Query()]
PartQuery = Annotated[str | None, Query(pattern=SEARCH_PATTERN, description="a part of it, whatever its case")]
ActorQuery = Annotated[
    str | None,
    Query(pattern=SEARCH_PATTERN, description="an organization, a token's id, `operator` or `server`"),
]


@router.get("/overview", responses=declares())
def overview(services: ServicesOf, _: OperatorOf) -> Overview:
    """Counts of everything, and the last failures."""
    with reading(services.database) as session:
        return counts.overview(session, services.clock(), services.settings.worker_lease)


@router.get("/workers", responses=declares())
def list_workers(services: ServicesOf, _: OperatorOf, page: PageOf) -> Page[WorkerInfo]:
    """List the workers, the newest first, with what each is running."""
    with reading(services.database) as session:
        by = [WorkerRow.started_at, WorkerRow.id]
        rows, cursor = paginate(session, select(WorkerRow), page, by=by, descending=True)
        documents = counts.worker_documents(session, rows, services.clock(), services.settings.worker_lease)
        return Page(items=tuple(documents), next_cursor=cursor)


@router.get("/organizations", responses=declares())
def list_organizations(services: ServicesOf, _: OperatorOf, page: PageOf) -> Page[AdminOrganization]:
    """List all organizations by name: their tokens, their projects, and when they were last heard of."""
    with reading(services.database) as session:
        rows, cursor = paginate(session, select(OrganizationRow), page, by=[OrganizationRow.name])
        return Page(items=tuple(organization_documents(session, rows, services.clock())), next_cursor=cursor)


@router.get("/projects", responses=declares())
def list_projects(services: ServicesOf, _: OperatorOf, page: PageOf) -> Page[AdminProject]:
    """List all projects by id, with the bytes that they hold."""
    with reading(services.database) as session:
        rows, cursor = paginate(session, select(ProjectRow), page, by=[ProjectRow.id])
        documents = project_documents(session, rows, settings=services.settings, now=services.clock())
        return Page(items=tuple(documents), next_cursor=cursor)


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
        documents = contribution_documents(session, rows, services.clock())
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
    where = () if state is None else (JobRow.state == state,)
    with reading(services.database) as session:
        rows, cursor = newest_rows(session, JobRow, page, project=project, where=where)
        return Page(items=tuple(job_documents(session, rows)), next_cursor=cursor)


@router.get("/models", responses=declares())
def list_models(services: ServicesOf, _: OperatorOf, page: PageOf, project: ProjectQuery = None) -> Page[Model]:
    """List all models, deleted ones too, the newest first."""
    with reading(services.database) as session:
        rows, cursor = newest_rows(session, ModelRow, page, project=project)
        return Page(items=tuple(admin_models(session, rows, services.clock())), next_cursor=cursor)


@router.get("/requests", responses=declares())
def list_requests(
    services: ServicesOf, _: OperatorOf, page: PageOf, project: ProjectQuery = None
) -> Page[AdminRequest]:
    """List all requests and who has answered, the newest first."""
    with reading(services.database) as session:
        rows, cursor = newest_rows(session, RequestRow, page, project=project)
        return Page(items=tuple(admin_requests(session, rows, services.clock())), next_cursor=cursor)


@router.get("/storage", responses=declares())
def storage(services: ServicesOf, _: OperatorOf) -> Storage:
    """What the blob store holds, by the database's account."""
    with reading(services.database) as session:
        return counts.storage(session)


@router.get("/throughput", responses=declares())
def read_throughput(
    services: ServicesOf, _: OperatorOf, hours: Annotated[int, Query(ge=1, le=MAX_HOURS)] = HOURS
) -> Throughput:
    """Merges and bytes of each of the last hours."""
    with reading(services.database) as session:
        return throughput(session, services.clock(), hours)


@router.get("/audit-log", responses=declares())
def read_audit_log(
    services: ServicesOf,
    _: OperatorOf,
    page: PageOf,
    action: PartQuery = None,
    subject: PartQuery = None,
    actor: ActorQuery = None,
) -> Page[AuditEntry]:
    """Search the audit log, the newest row first."""
    query = AuditSearch(action=action, subject=subject, actor=actor).query()
    with reading(services.database) as session:
        rows, cursor = paginate(session, query, page, by=[AuditRow.sequence], descending=True)
        return Page(items=tuple(entry_of(row) for row in rows), next_cursor=cursor)
