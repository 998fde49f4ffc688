"""Projects, their participants and their policies, from the first to the end."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from gramfuse_server.api.context import (
    CallerOf,
    OrganizationPath,
    ProjectPath,
    Services,
    ServicesOf,
    declares,
)
from gramfuse_server.api.documents import document_body, read_document
from gramfuse_server.api.paging import PageOf
from gramfuse_server.auth import Caller, changeable_project, visible_project, visible_projects
from gramfuse_server.database import reading, transaction
from gramfuse_server.ending import delete_project as delete
from gramfuse_server.ending import end_membership
from gramfuse_server.intake import policies, projects
from gramfuse_server.listing import paginate
from gramfuse_server.tables import ProjectRow
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Acceptance, Page, PolicyVersion, Project, ProjectCreate
from gramfuse_shared.contract.identity import SignedAcceptance
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import (
    ConflictError,
    DocumentMalformedError,
    HeaderMalformedError,
    IdentityChangedError,
    PolicyViolationError,
    QuotaExceededError,
    SignatureInvalidError,
    StateError,
)
from gramfuse_shared.identifiers import Digest

router = APIRouter(prefix="/v1/projects", tags=["projects"])

VersionPath = Annotated[int, Path(ge=1, le=1_000_000)]
PolicyDigestPath = Annotated[Digest, Path(description="the current policy's digest")]


@router.put(
    "/{project}",
    status_code=201,
    max_body_size=limits.MAX_DOCUMENT_BYTES,
    openapi_extra=document_body(ProjectCreate),
    responses=declares(
        ConflictError,
        DocumentMalformedError,
        PolicyViolationError,
        HeaderMalformedError,
        QuotaExceededError,
        StateError,
    )
    | {200: {"model": Project, "description": "It exists already, with the same base and policy"}},
)
async def create_project(project: ProjectPath, request: Request, response: Response, services: ServicesOf) -> Project:
    """Create a project (coordinator of the organization before the dot); its base is uploaded next."""
    caller, body = await read_document(request, ProjectCreate)
    document, new = await run_in_threadpool(_create, services, caller, project, body)
    response.status_code = 201 if new else 200
    return document


@router.get("", responses=declares())
def list_projects(services: ServicesOf, caller: CallerOf, page: PageOf) -> Page[Project]:
    """List the projects in which the caller's organization takes part."""
    with reading(services.database) as session:
        rows, cursor = paginate(session, visible_projects(caller), page, by=[ProjectRow.id])
        documents = projects.project_documents(session, rows, settings=services.settings, now=services.clock())
        return Page(items=tuple(documents), next_cursor=cursor)


@router.get("/{project}", responses=declares())
def get_project(project: ProjectPath, services: ServicesOf, caller: CallerOf) -> Project:
    """A project as its participants see it."""
    with reading(services.database) as session:
        return project_document(session, services, visible_project(session, caller, project))


@router.delete("/{project}", responses=declares())
def delete_project(project: ProjectPath, services: ServicesOf, caller: CallerOf) -> Project:
    """Delete a project (coordinator): jobs and requests end, what was given is withdrawn, its bytes go after a day.

    What was signed and noted stays, and the name stays taken. Twice is the same as once.
    """
    with transaction(services.database) as session:
        row = visible_project(session, caller, project, lock=True)
        caller.require_coordinator(row.coordinator)
        delete(session, caller, row, queue=services.jobs, settings=services.settings, now=services.clock())
        return project_document(session, services, row)


@router.put(
    "/{project}/participants/{organization}",
    status_code=201,
    responses=declares(StateError) | {200: {"model": Project, "description": "It is a participant already"}},
)
def invite_participant(
    project: ProjectPath, organization: OrganizationPath, response: Response, services: ServicesOf, caller: CallerOf
) -> Project:
    """Invite an organization (the project's coordinator)."""
    with transaction(services.database) as session:
        row = changeable_project(session, caller, project)
        new = projects.invite(session, caller, row, organization, services.clock())
        response.status_code = 201 if new else 200
        return project_document(session, services, row)


@router.delete("/{project}/participants/{organization}", responses=declares(StateError))
def end_participation(
    project: ProjectPath,
    organization: OrganizationPath,
    services: ServicesOf,
    caller: CallerOf,
    joined: Annotated[
        bool, Query(description="also where the organization has joined: what it gave is withdrawn")
    ] = False,
) -> Project:
    """End an organization's part in a project: any other's (the project's coordinator), or the caller's own.

    Without `joined` only an invitation that nobody accepted is taken back. The answer is the last that who leaves sees.
    """
    with transaction(services.database) as session:
        row = changeable_project(session, caller, project)
        end_membership(
            session,
            caller,
            row,
            organization,
            joined=joined,
            queue=services.jobs,
            settings=services.settings,
            now=services.clock(),
        )
        return project_document(session, services, row)


@router.delete("/{project}/participants/{organization}/identity", responses=declares(StateError))
def reset_identity(
    project: ProjectPath, organization: OrganizationPath, services: ServicesOf, caller: CallerOf
) -> Project:
    """Forget a participant's identity key (coordinator): it accepts the policy anew, with another key."""
    with transaction(services.database) as session:
        row = changeable_project(session, caller, project)
        policies.reset_identity(session, caller, row, organization, services.clock())
        return project_document(session, services, row)


@router.get("/{project}/policies/{version}", responses=declares())
def get_policy(project: ProjectPath, version: VersionPath, services: ServicesOf, caller: CallerOf) -> PolicyVersion:
    """A version of the project's policy."""
    with reading(services.database) as session:
        row = visible_project(session, caller, project)
        return policies.policy_document(policies.find_policy(session, row.id, version))


@router.put(
    "/{project}/policies/{version}",
    status_code=201,
    responses=declares(ConflictError, PolicyViolationError, StateError)
    | {200: {"model": PolicyVersion, "description": "The version exists with this content"}},
)
def publish_policy(
    project: ProjectPath,
    version: VersionPath,
    body: Policy,
    response: Response,
    services: ServicesOf,
    caller: CallerOf,
) -> PolicyVersion:
    """Publish the next version of the policy (coordinator); until accepted it blocks push and jobs."""
    with transaction(services.database) as session:
        row = changeable_project(session, caller, project)
        policy, new = policies.publish_policy(session, caller, row, version, body, services.clock())
        response.status_code = 201 if new else 200
        return policies.policy_document(policy)


@router.put(
    "/{project}/acceptances/{policy_digest}",
    status_code=201,
    responses=declares(ConflictError, SignatureInvalidError, IdentityChangedError, StateError)
    | {200: {"model": Acceptance, "description": "The organization accepted this version already"}},
)
def accept_policy(
    project: ProjectPath,
    policy_digest: PolicyDigestPath,
    body: SignedAcceptance,
    response: Response,
    services: ServicesOf,
    caller: CallerOf,
) -> Acceptance:
    """Accept the current policy for the caller's organization, signed by its identity key, which this registers."""
    with transaction(services.database) as session:
        row = changeable_project(session, caller, project)
        acceptance, new = policies.accept_policy(session, caller, row, policy_digest, body, services.clock())
        response.status_code = 201 if new else 200
        return policies.acceptance_document(acceptance)


def project_document(session: Session, services: Services, row: ProjectRow) -> Project:
    """Return one project as it travels."""
    (document,) = projects.project_documents(session, [row], settings=services.settings, now=services.clock())
    return document


def _create(services: Services, caller: Caller, project: str, body: ProjectCreate) -> tuple[Project, bool]:
    with transaction(services.database) as session:
        row, new = projects.create_project(
            session, caller, project, body, settings=services.settings, now=services.clock()
        )
        return project_document(session, services, row), new
