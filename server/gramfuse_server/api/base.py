"""A project's base model: its manifest, its files, and their upload by the coordinator."""

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from gramfuse_server.api.context import (
    CallerOf,
    FilePath,
    ProjectPath,
    Services,
    ServicesOf,
    declares,
)
from gramfuse_server.api.files import StoredFile, audit_download, declares_file, file_response
from gramfuse_server.api.part_routes import add_part_routes
from gramfuse_server.api.projects import project_document
from gramfuse_server.api.uploads import FindUpload, SealNotes, seal_upload
from gramfuse_server.auth import Caller, changeable_project, visible_project
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake import parts, projects, sealing
from gramfuse_server.tables import ProjectRow, UploadRow
from gramfuse_shared.contract.http_api import Project
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    DocumentMalformedError,
    HeaderMalformedError,
    HeaderTooLargeError,
    PartsMissingError,
    ScalesMalformedError,
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


async def _find_upload(project: ProjectPath) -> FindUpload:
    return lambda session, caller: _own_upload(session, caller, project)[1]


add_part_routes(router, "", of="base", finds=_find_upload, by=" (coordinator)")


@router.post(
    "/seal",
    responses=declares(
        PartsMissingError,
        StateError,
        HeaderMalformedError,
        HeaderTooLargeError,
        ArchitectureMismatchError,
        DocumentMalformedError,
        ScalesMalformedError,
    ),
)
def seal_base(project: ProjectPath, services: ServicesOf, caller: CallerOf) -> Project:
    """Close the base model's upload (coordinator); a worker then checks it: sealed → ready or rejected."""
    with reading(services.database) as session:
        row, upload = _own_upload(session, caller, project)
    notes = SealNotes("base", project, sealed={"base": row.base_digest})
    seal_upload(
        services, caller, upload.id, notes, lambda files: sealing.require_base_files(projects.base_of(row), files)
    )
    with reading(services.database) as session:
        return project_document(session, services, visible_project(session, caller, project))


def _own_upload(session: Session, caller: Caller, project: str) -> tuple[ProjectRow, UploadRow]:
    row = changeable_project(session, caller, project, lock=False)
    caller.require_coordinator(row.coordinator)
    return row, session.get_one(UploadRow, row.base_upload)


def _stored_file(session: Session, services: Services, caller: Caller, project: str, file: str) -> StoredFile:
    row = visible_project(session, caller, project)
    upload = session.get_one(UploadRow, row.base_upload)
    entry = parts.find_file(session, upload, file)
    projects.require_ready(session, row, services.clock())
    return StoredFile(name=entry.name, bytes=entry.bytes, sha256=entry.sha256)
