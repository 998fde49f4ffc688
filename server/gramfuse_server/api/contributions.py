"""Contributions: create, send, seal, list, withdraw."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.api.context import (
    CallerOf,
    ContributionPath,
    ProjectPath,
    Services,
    ServicesOf,
    declares,
)
from gramfuse_server.api.documents import document_body, read_document
from gramfuse_server.api.paging import PageOf
from gramfuse_server.api.part_routes import add_part_routes
from gramfuse_server.api.uploads import FindUpload, SealNotes, seal_upload
from gramfuse_server.auth import Caller, changeable_project, visible_project
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake import contributions, sealing
from gramfuse_server.intake.audit_summaries import hold_summary, policy_of, require_summary
from gramfuse_server.intake.uploads import shown_state
from gramfuse_server.listing import paginate
from gramfuse_server.tables import ContributionRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.http_api import (
    Contribution,
    ContributionDetail,
    ContributionState,
    Page,
)
from gramfuse_shared.contract.identity import SIGNATURE_HEADER
from gramfuse_shared.contract.manifest import ContributionManifest
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    AuditMissingError,
    DigestMismatchError,
    DocumentMalformedError,
    HeaderMalformedError,
    HeaderTooLargeError,
    PartsMissingError,
    PolicyNotAcceptedError,
    PolicyViolationError,
    QuotaExceededError,
    SignatureInvalidError,
    StateError,
    StatisticsMalformedError,
)
from gramfuse_shared.identifiers import OrganizationName, Signature

router = APIRouter(prefix="/v1/projects/{project}/contributions", tags=["contributions"])


@router.put(
    "/{contribution}",
    status_code=201,
    max_body_size=limits.MAX_DOCUMENT_BYTES,
    openapi_extra=document_body(ContributionManifest),
    responses=declares(
        DocumentMalformedError,
        DigestMismatchError,
        StateError,
        ArchitectureMismatchError,
        HeaderMalformedError,
        PolicyNotAcceptedError,
        PolicyViolationError,
        QuotaExceededError,
        SignatureInvalidError,
    )
    | {200: {"model": ContributionDetail, "description": "It exists already"}},
)
async def create_contribution(
    project: ProjectPath,
    contribution: ContributionPath,
    request: Request,
    response: Response,
    services: ServicesOf,
    signature: Annotated[
        Signature | None,
        Header(alias=SIGNATURE_HEADER, description="of the contribution's statement, by the identity key"),
    ] = None,
) -> ContributionDetail:
    """Open a contribution under its manifest's digest. The answer names part size and count of each file."""
    caller, manifest = await read_document(request, ContributionManifest)
    document, new = await run_in_threadpool(_create, services, caller, project, contribution, manifest, signature)
    response.status_code = 201 if new else 200
    return document


@router.get("", responses=declares())
def list_contributions(
    project: ProjectPath,
    services: ServicesOf,
    caller: CallerOf,
    page: PageOf,
    organization: Annotated[OrganizationName | None, Query()] = None,
    state: Annotated[ContributionState | None, Query()] = None,
) -> Page[Contribution]:
    """List the project's contributions, newest first."""
    with reading(services.database) as session:
        row = visible_project(session, caller, project)
        query = select(ContributionRow).where(ContributionRow.project == row.id)
        if organization is not None:
            query = query.where(ContributionRow.organization == organization)
        if state is not None:
            query = query.join(UploadRow, UploadRow.id == ContributionRow.upload).where(
                contributions.state_is(state, services.clock())
            )
        rows, cursor = paginate(
            session, query, page, by=[ContributionRow.created_at, ContributionRow.id], descending=True
        )
        found = contributions.contribution_documents(session, rows, caller.organization, services.clock())
        items = tuple(Contribution.model_validate(document.model_dump(exclude={"manifest"})) for document in found)
        return Page(items=items, next_cursor=cursor)


@router.get("/{contribution}", responses=declares())
def get_contribution(
    project: ProjectPath, contribution: ContributionPath, services: ServicesOf, caller: CallerOf
) -> ContributionDetail:
    """A contribution; manifest, files and reason are its own organization's only."""
    with reading(services.database) as session:
        row = contributions.find_contribution(session, visible_project(session, caller, project), contribution)
        return contributions.contribution_documents(
            session, [row], caller.organization, services.clock(), manifests=True
        )[0]


async def _find_upload(project: ProjectPath, contribution: ContributionPath) -> FindUpload:
    return lambda session, caller: _own_upload(session, caller, project, contribution)[1]


add_part_routes(router, "/{contribution}", of="contribution", finds=_find_upload)


@router.put("/{contribution}/audit", responses=declares(PolicyViolationError, StateError))
def put_audit(
    project: ProjectPath, contribution: ContributionPath, body: AuditSummary, services: ServicesOf, caller: CallerOf
) -> Contribution:
    """Say how the contribution's audit came out, where its policy shares that; before the seal, and anew until then."""
    now = services.clock()
    with transaction(services.database) as session:
        found = changeable_project(session, caller, project)
        row = contributions.own_contribution(session, caller, found, contribution)
        hold_summary(session, caller, row, body, now)
        return contributions.contribution_documents(session, [row], caller.organization, now)[0]


@router.post(
    "/{contribution}/seal",
    responses=declares(
        PartsMissingError,
        AuditMissingError,
        StateError,
        HeaderMalformedError,
        HeaderTooLargeError,
        StatisticsMalformedError,
        ArchitectureMismatchError,
        PolicyViolationError,
    ),
)
def seal_contribution(
    project: ProjectPath, contribution: ContributionPath, services: ServicesOf, caller: CallerOf
) -> Contribution:
    """Close a contribution's upload; a worker then checks it: sealed → accepted or rejected.

    A manifest that is all, since the rest is summed in secret, is accepted at once.
    """
    now = services.clock()
    with reading(services.database) as session:
        row, upload = _own_upload(session, caller, project, contribution)
        policy = policy_of(session, row)
    if shown_state(upload, now) == "open":
        require_summary(row, policy)
    if policy.aggregation == "secure":
        with transaction(services.database) as session:
            contributions.seal_manifest(session, caller, session.get_one(ContributionRow, row.id), now)
    else:
        named = {"contribution": row.id}
        manifest = ContributionManifest.parse(row.manifest)
        seal_upload(
            services,
            caller,
            upload.id,
            SealNotes("contribution", project, sealed=named, rejected=named),
            lambda files: sealing.require_contribution_files(manifest, files),
        )
    with reading(services.database) as session:
        return contributions.contribution_documents(session, [row], caller.organization, services.clock())[0]


@router.post("/{contribution}/withdraw", responses=declares(StateError))
def withdraw_contribution(
    project: ProjectPath, contribution: ContributionPath, services: ServicesOf, caller: CallerOf
) -> Contribution:
    """Withdraw a contribution: unfinished jobs are cancelled, no new one uses it, its bytes go after a day."""
    now = services.clock()
    with transaction(services.database) as session:
        found = changeable_project(session, caller, project)
        row = contributions.own_contribution(session, caller, found, contribution)
        contributions.withdraw(session, caller, row, jobs=services.jobs, settings=services.settings, now=now)
        return contributions.contribution_documents(session, [row], caller.organization, now)[0]


def _create(
    services: Services,
    caller: Caller,
    project: str,
    contribution: str,
    manifest: ContributionManifest,
    signature: str | None,
) -> tuple[ContributionDetail, bool]:
    now = services.clock()
    with transaction(services.database) as session:
        found = changeable_project(session, caller, project)
        row, new = contributions.create_contribution(
            session, caller, found, contribution, manifest, signature=signature, settings=services.settings, now=now
        )
        documents = contributions.contribution_documents(session, [row], caller.organization, now, manifests=True)
        return documents[0], new


def _own_upload(session: Session, caller: Caller, project: str, contribution: str) -> tuple[ContributionRow, UploadRow]:
    found = changeable_project(session, caller, project, lock=False)
    row = contributions.own_contribution(session, caller, found, contribution)
    return row, session.get_one(UploadRow, row.upload)
