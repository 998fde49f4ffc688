"""Requests: made and taken back by the coordinator, answered by each organization that is asked."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
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
from gramfuse_server.api.part_routes import add_part_routes
from gramfuse_server.api.uploads import FindUpload, SealNotes, seal_upload
from gramfuse_server.auth import Caller, changeable_project, require_accepted_policy, visible_project
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake import sealing
from gramfuse_server.intake.parts import PartedFile
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.listing import paginate
from gramfuse_server.merging.sessions import plan_secure_session, taps_of_scales
from gramfuse_server.merging.submission import decide_cohort
from gramfuse_server.requests import answering, asking
from gramfuse_server.requests.documents import answer_document, find_request, request_documents
from gramfuse_server.requests.sessions import session_of, shown_in, stage_of_request
from gramfuse_server.tables import AskedRow, ProjectRow, RequestRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import (
    AnswerInfo,
    Page,
    StageMessages,
)
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import Answer, RequestCreate, RequestInfo
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    CohortFrozenError,
    ConflictError,
    DocumentMalformedError,
    HeaderMalformedError,
    HeaderTooLargeError,
    NotFoundError,
    PartsMissingError,
    PolicyNotAcceptedError,
    PolicyViolationError,
    QuotaExceededError,
    RecipeInvalidError,
    SecureSessionRefusedError,
    SignatureInvalidError,
    StateError,
    StatisticsMalformedError,
)
from gramfuse_shared.identifiers import JobId

router = APIRouter(prefix="/v1/projects/{project}/requests", tags=["requests"])

RequestPath = Annotated[JobId, Path(description="chosen by the client, of a job id's form")]
_ANSWER = "/{request}/answers/{organization}"


@router.put(
    "/{request}",
    status_code=201,
    responses=declares(
        ConflictError, PolicyViolationError, PolicyNotAcceptedError, RecipeInvalidError, CohortFrozenError, StateError
    )
    | {200: {"model": RequestInfo, "description": "It was made before, with the same body"}},
)
def create_request(
    project: ProjectPath,
    request: RequestPath,
    body: RequestCreate,
    response: Response,
    services: ServicesOf,
    caller: CallerOf,
) -> RequestInfo:
    """Ask every organization of the models' cohorts, or those in a secure sum (coordinator)."""
    now = services.clock()
    with reading(services.database) as session:
        scales = current_policy(session, visible_project(session, caller, project)).scales
    scaled = taps_of_scales(services.blobs, scales) if body.recipe is not None else ()
    with transaction(services.database) as session:
        owner = changeable_project(session, caller, project)
        caller.require_coordinator(owner.coordinator)
        require_accepted_policy(session, caller, owner)

        def plan(recipe: Recipe) -> SessionManifest:
            return plan_secure_session(
                session,
                owner,
                request,
                recipe,
                decide_cohort=lambda found: decide_cohort(session, owner, found, besides="", now=now),
                scaled_taps=scaled,
            )

        row, new = asking.ask(session, owner, caller, identifier=request, body=body, plan_session=plan, now=now)
        response.status_code = 201 if new else 200
        return request_documents(session, [row], caller.organization, now)[0]


@router.get("", responses=declares())
def list_requests(project: ProjectPath, services: ServicesOf, caller: CallerOf, page: PageOf) -> Page[RequestInfo]:
    """List the project's requests, the newest first."""
    with reading(services.database) as session:
        owner = visible_project(session, caller, project)
        query = select(RequestRow).where(RequestRow.project == owner.id)
        rows, cursor = paginate(session, query, page, by=[RequestRow.created_at, RequestRow.id], descending=True)
        items = request_documents(session, rows, caller.organization, services.clock())
        return Page(items=tuple(items), next_cursor=cursor)


@router.get("/{request}", responses=declares())
def get_request(project: ProjectPath, request: RequestPath, services: ServicesOf, caller: CallerOf) -> RequestInfo:
    """A request: what is asked, of whom, and how far they are; of an evaluation also everybody's metrics."""
    with reading(services.database) as session:
        row = find_request(session, visible_project(session, caller, project).id, request)
        return request_documents(session, [row], caller.organization, services.clock())[0]


@router.get("/{request}/session", responses=declares())
def get_session(project: ProjectPath, request: RequestPath, services: ServicesOf, caller: CallerOf) -> SessionManifest:
    """The manifest of the secure sum that a stage belongs to: who sums what, and how numbers become words."""
    with reading(services.database) as session:
        row = find_request(session, visible_project(session, caller, project).id, request)
        return session_of(session, row)


@router.get("/{request}/messages", responses=declares())
def get_messages(project: ProjectPath, request: RequestPath, services: ServicesOf, caller: CallerOf) -> StageMessages:
    """The signed messages that a stage of a secure sum shows: those of the stage before."""
    with reading(services.database) as session:
        row = find_request(session, visible_project(session, caller, project).id, request)
        stage_of_request(row)
        return StageMessages(messages=shown_in(session, row))


@router.post("/{request}/cancel", responses=declares(StateError))
def cancel_request(project: ProjectPath, request: RequestPath, services: ServicesOf, caller: CallerOf) -> RequestInfo:
    """Take a request back (coordinator)."""
    now = services.clock()
    with transaction(services.database) as session:
        owner = changeable_project(session, caller, project)
        caller.require_coordinator(owner.coordinator)
        row = find_request(session, owner.id, request)
        asking.cancel(session, caller, row, now=now)
        return request_documents(session, [row], caller.organization, now)[0]


@router.put(
    _ANSWER,
    status_code=201,
    max_body_size=limits.MAX_DOCUMENT_BYTES,
    openapi_extra=document_body(Answer),
    responses=declares(
        DocumentMalformedError,
        ConflictError,
        StateError,
        PolicyNotAcceptedError,
        PolicyViolationError,
        ArchitectureMismatchError,
        HeaderMalformedError,
        QuotaExceededError,
        SecureSessionRefusedError,
        SignatureInvalidError,
    )
    | {200: {"model": AnswerInfo, "description": "It was given before"}},
)
async def put_answer(
    project: ProjectPath,
    request: RequestPath,
    organization: OrganizationPath,
    http: Request,
    response: Response,
    services: ServicesOf,
) -> AnswerInfo:
    """Answer a request. Where the answer has files, the answer to it names part size and count of each."""
    caller, answer = await read_document(http, Answer)
    document, new = await run_in_threadpool(_answer, services, caller, project, request, organization, answer)
    response.status_code = 201 if new else 200
    return document


@router.get(_ANSWER, responses=declares())
def get_answer(
    project: ProjectPath,
    request: RequestPath,
    organization: OrganizationPath,
    services: ServicesOf,
    caller: CallerOf,
) -> AnswerInfo:
    """An organization's own answer."""
    with reading(services.database) as session:
        owner = visible_project(session, caller, project)
        place = _own_place(session, caller, owner, request, organization)
        return answer_document(session, place, services.clock())


async def _find_upload(project: ProjectPath, request: RequestPath, organization: OrganizationPath) -> FindUpload:
    def find(session: Session, caller: Caller) -> UploadRow:
        owner = changeable_project(session, caller, project, lock=False)
        return _upload(session, _own_place(session, caller, owner, request, organization))

    return find


add_part_routes(router, _ANSWER, of="answer", finds=_find_upload)


@router.post(
    _ANSWER + "/seal",
    responses=declares(
        PartsMissingError,
        StateError,
        HeaderMalformedError,
        HeaderTooLargeError,
        StatisticsMalformedError,
        ArchitectureMismatchError,
        PolicyViolationError,
    ),
)
def seal_answer(
    project: ProjectPath,
    request: RequestPath,
    organization: OrganizationPath,
    services: ServicesOf,
    caller: CallerOf,
) -> AnswerInfo:
    """Close the upload of an answer's files; a worker then checks it: sealed → accepted or rejected."""
    with reading(services.database) as session:
        owner = changeable_project(session, caller, project, lock=False)
        place = _own_place(session, caller, owner, request, organization)
        upload = _upload(session, place)
        if upload.state == "open":
            answering.require_in_time(find_request(session, project, request), services.clock())
        row = find_request(session, project, request)
        secured = None if row.opened_by is None else session_of(session, row)
        base = owner.base_digest
    statistics = answering.answer_of(place).statistics

    def check(files: Mapping[str, PartedFile]) -> None:
        if statistics is not None:
            sealing.require_statistics_file(statistics, base, files)
        if secured is not None:
            sealing.require_words_file(secured, files)

    seal_upload(services, caller, upload.id, SealNotes("answer", f"{project}/{request}"), check)
    with reading(services.database) as session:
        return answer_document(session, place, services.clock())


def _answer(
    services: Services, caller: Caller, project: str, request: str, organization: str, answer: Answer
) -> tuple[AnswerInfo, bool]:
    now = services.clock()
    with transaction(services.database) as session:
        owner = changeable_project(session, caller, project)
        row = find_request(session, owner.id, request)
        answering.own_answer(session, caller, row, organization)
        place, new = answering.answer_request(session, caller, owner, row, answer, settings=services.settings, now=now)
        return answer_document(session, place, now), new


def _own_place(session: Session, caller: Caller, owner: ProjectRow, request: str, organization: str) -> AskedRow:
    row = find_request(session, owner.id, request)
    return answering.own_answer(session, caller, row, organization)


def _upload(session: Session, place: AskedRow) -> UploadRow:
    if place.upload is None:
        msg = f"{place.organization} has not announced an answer with files to {place.request}"
        raise NotFoundError(msg)
    return session.get_one(UploadRow, place.upload)
