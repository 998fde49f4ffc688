"""A project's base model: its manifest, its files, and their upload by the coordinator."""

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from gramfuse_server.api.context import (
    CallerOf,
    FilePath,
    ProjectPath,
    Services,
    ServicesOf,
    audit,
    authenticated,
    declares,
)
from gramfuse_server.api.files import StoredFile, audit_download, declares_file, file_response
from gramfuse_server.api.projects import project_document
from gramfuse_server.api.uploads import (
    PART_BODY,
    PART_RESPONSES,
    PartPath,
    announced_part,
    discard_parts,
    store_part,
)
from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake import parts, projects, sealing
from gramfuse_server.intake.uploads import lock_upload, require_open
from gramfuse_server.tables import UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Part, PartList, Project
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    DocumentMalformedError,
    GramfuseError,
    HeaderMalformedError,
    HeaderTooLargeError,
    PartsMissingError,
    StateError,
)

router = APIRouter(prefix="/v1/projects/{project}/base", tags=["base model"])


@router.get("", responses=declares())
def get_base(project: ProjectPath, services: ServicesOf, caller: CallerOf) -> BaseManifest:
    """The base model's manifest; its digest is the fingerprint that contributions name."""
    with reading(services.database) as session:
        return projects.base_of(visible_project(session, caller, project))


@router.get("/files/{file}", response_class=Response, responses=declares_file(StateError))
def download_base_file(
    project: ProjectPath, file: FilePath, request: Request, services: ServicesOf, caller: CallerOf
) -> Response:
    """Download a file of the base model, whole or a range."""
    with transaction(services.database) as session:
        stored = _stored_file(session, services, caller, project, file)
        audit_download(session, services, caller, request, project=project, file=stored)
    return file_response(request, services, stored)


@router.head("/files/{file}", response_class=Response, responses=declares_file(StateError))
def describe_base_file(
    project: ProjectPath, file: FilePath, request: Request, services: ServicesOf, caller: CallerOf
) -> Response:
    """Length and digest of a file of the base model."""
    with reading(services.database) as session:
        stored = _stored_file(session, services, caller, project, file)
    return file_response(request, services, stored)


@router.get("/files/{file}/parts", responses=declares())
def list_base_parts(project: ProjectPath, file: FilePath, services: ServicesOf, caller: CallerOf) -> PartList:
    """The parts of a file that have arrived (coordinator), so that a rerun sends only the others."""
    with reading(services.database) as session:
        row = visible_project(session, caller, project)
        caller.require_coordinator(row.coordinator)
        return parts.parts_of(session, session.get_one(UploadRow, row.base_upload), file)


@router.put(
    "/files/{file}/parts/{number}",
    status_code=201,
    max_body_size=limits.MAX_PART_BYTES,
    openapi_extra=PART_BODY,
    responses=PART_RESPONSES,
)
async def put_base_part(
    project: ProjectPath, file: FilePath, number: PartPath, request: Request, response: Response, services: ServicesOf
) -> Part:
    """Send a part of a file (coordinator). Refused before its body is read, if it can be."""

    def find_slot() -> parts.Slot:
        caller = authenticated(services, request.headers.get("authorization"))
        with reading(services.database) as session:
            row = visible_project(session, caller, project)
            caller.require_coordinator(row.coordinator)
            length, sha256 = announced_part(request)
            upload = session.get_one(UploadRow, row.base_upload)
            return parts.find_slot(
                session, upload, file=file, number=number, length=length, sha256=sha256, now=services.clock()
            )

    return await store_part(request, response, services, await run_in_threadpool(find_slot))


@router.post(
    "/seal",
    responses=declares(
        PartsMissingError,
        StateError,
        HeaderMalformedError,
        HeaderTooLargeError,
        ArchitectureMismatchError,
        DocumentMalformedError,
    ),
)
def seal_base(project: ProjectPath, services: ServicesOf, caller: CallerOf) -> Project:
    """Close the base model's upload (coordinator); a worker then checks it: sealed → ready or rejected."""
    now = services.clock()
    with reading(services.database) as session:
        row = visible_project(session, caller, project)
        caller.require_coordinator(row.coordinator)
        upload = session.get_one(UploadRow, row.base_upload)
        if upload.state in {"sealed", "accepted", "rejected"}:
            return project_document(session, services, row)
        require_open(upload, now)
        files = sealing.complete_files(session, services.blobs, upload)
    try:
        sealing.require_base_files(projects.base_of(row), files)
    except GramfuseError as error:
        if error.retryable:  # the store's fault, not the file's
            raise
        _reject(services, caller, project, upload.id, error)
        raise
    with transaction(services.database) as session:
        row = visible_project(session, caller, project, lock=True)
        upload = lock_upload(session, row.base_upload)
        if upload.state == "open":
            sealing.seal(session, upload, queue=services.jobs, now=now)
            audit(session, services, caller, "base.seal", project, {"base": row.base_digest, "bytes": upload.bytes})
        return project_document(session, services, row)


def _reject(services: Services, caller: Caller, project: str, upload_id: str, error: GramfuseError) -> None:
    now = services.clock()
    with transaction(services.database) as session:
        upload = lock_upload(session, upload_id)
        if upload.state != "open":
            return
        sealing.reject(upload, error.message, now)
        audit(session, services, caller, "base.reject", project, {"code": error.code})
    discard_parts(services, upload_id)


def _stored_file(session: Session, services: Services, caller: Caller, project: str, file: str) -> StoredFile:
    row = visible_project(session, caller, project)
    upload = session.get_one(UploadRow, row.base_upload)
    entry = parts.find_file(session, upload, file)
    projects.require_ready(session, row, services.clock())
    return StoredFile(name=entry.name, bytes=entry.bytes, sha256=entry.sha256)
