"""The operators' view of a project, its jobs and its models, as JSON; what they change are priorities and quotas,
and they may delete one.

No files: those are its participants' own.
"""

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.api.context import (
    ContributionPath,
    JobPath,
    OperatorOf,
    ProjectPath,
    Services,
    ServicesOf,
    declares,
)
from gramfuse_server.api.paging import PageOf
from gramfuse_server.database import reading, transaction
from gramfuse_server.ending import delete_project as delete
from gramfuse_server.intake.contributions import find_contribution
from gramfuse_server.intake.policies import find_policy, policy_document
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import diagnostics_document, find_job, find_model, log_entry
from gramfuse_server.operations.merges import admin_models, find_card, job_with_attempts, with_card
from gramfuse_server.operations.priorities import prioritize
from gramfuse_server.operations.projects import contribution_documents, find_project, project_documents
from gramfuse_server.operations.quotas import change_quota
from gramfuse_server.tables import JobLogRow, ProjectRow
from gramfuse_shared.contract.diagnostics import JobDiagnostics
from gramfuse_shared.contract.http_api import JobLogEntry, Page, PolicyVersion
from gramfuse_shared.contract.operators import (
    AdminContribution,
    AdminJob,
    AdminModel,
    AdminProject,
    JobPriority,
    QuotaChange,
)
from gramfuse_shared.errors import ConflictError, StateError

router = APIRouter(prefix="/v1/admin/projects/{project}", tags=["operators"])


@router.get("", responses=declares())
def get_project(project: ProjectPath, services: ServicesOf, _: OperatorOf) -> AdminProject:
    """A project: its participants, what each accepted by which identity key, its bytes and quota."""
    with reading(services.database) as session:
        return _document(session, services, find_project(session, project))


@router.delete("", responses=declares())
def delete_project(project: ProjectPath, services: ServicesOf, caller: OperatorOf) -> AdminProject:
    """Delete a project, as its coordinator may. Twice is the same as once."""
    with transaction(services.database) as session:
        row = find_project(session, project, lock=True)
        delete(session, caller, row, queue=services.jobs, settings=services.settings, now=services.clock())
        return _document(session, services, row)


@router.put("/quota", responses=declares(ConflictError, StateError))
def put_quota(project: ProjectPath, body: QuotaChange, services: ServicesOf, caller: OperatorOf) -> AdminProject:
    """Give a project a quota of its own, or the server's default again."""
    with transaction(services.database) as session:
        row = change_quota(session, caller, project, body, settings=services.settings, now=services.clock())
        return _document(session, services, row)


@router.get("/policy", responses=declares())
def get_policy(project: ProjectPath, services: ServicesOf, _: OperatorOf) -> PolicyVersion:
    """The project's current policy."""
    with reading(services.database) as session:
        row = find_project(session, project)
        return policy_document(find_policy(session, row.id, row.policy_version))


@router.get("/contributions/{contribution}", responses=declares())
def get_contribution(
    project: ProjectPath, contribution: ContributionPath, services: ServicesOf, _: OperatorOf
) -> AdminContribution:
    """A contribution; why it may have been refused, its manifest and its files are its organization's own."""
    with reading(services.database) as session:
        row = find_contribution(session, find_project(session, project), contribution)
        return contribution_documents(session, [row], services.clock())[0]


@router.get("/jobs/{job}", responses=declares())
def get_job(project: ProjectPath, job: JobPath, services: ServicesOf, _: OperatorOf) -> AdminJob:
    """A job with all of its attempts."""
    with reading(services.database) as session:
        return job_with_attempts(session, find_job(session, project, job))


@router.put("/jobs/{job}/priority", responses=declares(StateError))
def set_priority(
    project: ProjectPath, job: JobPath, body: JobPriority, services: ServicesOf, caller: OperatorOf
) -> AdminJob:
    """Have a job go before or behind others of the server. What is being computed is not interrupted."""
    with transaction(services.database) as session:
        row = prioritize(session, caller, project, job, body.priority, services.clock())
        return job_with_attempts(session, row)


@router.get("/jobs/{job}/log", responses=declares())
def read_log(
    project: ProjectPath, job: JobPath, services: ServicesOf, _: OperatorOf, page: PageOf
) -> Page[JobLogEntry]:
    """The job's history, over all attempts, the newest line first."""
    with reading(services.database) as session:
        row = find_job(session, project, job)
        query = select(JobLogRow).where(JobLogRow.project == row.project, JobLogRow.job == row.id)
        rows, cursor = paginate(session, query, page, by=[JobLogRow.sequence], descending=True)
        return Page(items=tuple(log_entry(entry) for entry in rows), next_cursor=cursor)


@router.get("/jobs/{job}/diagnostics", responses=declares())
def read_diagnostics(project: ProjectPath, job: JobPath, services: ServicesOf, _: OperatorOf) -> JobDiagnostics:
    """What the job tells of its layers, as published: distances as their spread, nobody's by name."""
    with reading(services.database) as session:
        return diagnostics_document(session, find_job(session, project, job), None)


@router.get("/models/{model}", responses=declares())
def get_model(project: ProjectPath, model: JobPath, services: ServicesOf, _: OperatorOf) -> AdminModel:
    """A model with its receipt and its card."""
    with reading(services.database) as session:
        (document,) = admin_models(session, [find_model(session, project, model)], services.clock())
        card = find_card(session, document)
    return with_card(document, card, services.blobs)


def _document(session: Session, services: Services, row: ProjectRow) -> AdminProject:
    (document,) = project_documents(session, [row], settings=services.settings, now=services.clock())
    return document
