"""Merged models: listed, downloaded, deleted."""

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from gramfuse_server.api.context import (
    CallerOf,
    FilePath,
    JobPath,
    ProjectPath,
    Services,
    ServicesOf,
    declares,
)
from gramfuse_server.api.files import MEDIA_TYPE, StoredFile, audit_download, declares_file, file_response
from gramfuse_server.api.paging import PageOf
from gramfuse_server.auth import Caller, changeable_project, visible_project
from gramfuse_server.database import reading, transaction
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import find_model, model_documents
from gramfuse_server.merging.model_files import delete_files, find_model_file, find_readable_model, receipt_text
from gramfuse_server.tables import ModelRow
from gramfuse_shared.contract.http_api import Model, Page
from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME
from gramfuse_shared.errors import ModelNotReleasedError, StateError

router = APIRouter(prefix="/v1/projects/{project}/models", tags=["models"])


@router.get("", responses=declares())
def list_models(project: ProjectPath, services: ServicesOf, caller: CallerOf, page: PageOf) -> Page[Model]:
    """List the project's models that are not deleted, the newest first."""
    with reading(services.database) as session:
        row = visible_project(session, caller, project)
        query = select(ModelRow).where(ModelRow.project == row.id, ModelRow.deleted_at.is_(None))
        rows, cursor = paginate(session, query, page, by=[ModelRow.created_at, ModelRow.id], descending=True)
        return Page(items=tuple(model_documents(session, rows, services.clock())), next_cursor=cursor)


@router.get("/{model}", responses=declares())
def get_model(project: ProjectPath, model: JobPath, services: ServicesOf, caller: CallerOf) -> Model:
    """A model with its receipt, which stays when the files are deleted."""
    with reading(services.database) as session:
        row = find_model(session, visible_project(session, caller, project).id, model)
        return model_documents(session, [row], services.clock())[0]


@router.get("/{model}/files/{file}", response_class=Response, responses=declares_file(ModelNotReleasedError))
def download_model_file(
    project: ProjectPath, model: JobPath, file: FilePath, request: Request, services: ServicesOf, caller: CallerOf
) -> Response:
    """Download a file of a model, whole or a range. `receipt.json` is the signed receipt."""
    return send_model_file(services, caller, request, project=project, model=model, file=file)


@router.head("/{model}/files/{file}", response_class=Response, responses=declares_file(ModelNotReleasedError))
def describe_model_file(
    project: ProjectPath, model: JobPath, file: FilePath, request: Request, services: ServicesOf, caller: CallerOf
) -> Response:
    """Length and digest of a file of a model."""
    return send_model_file(services, caller, request, project=project, model=model, file=file)


@router.delete("/{model}", responses=declares(StateError))
def delete_model(project: ProjectPath, model: JobPath, services: ServicesOf, caller: CallerOf) -> Model:
    """Delete a model's files (coordinator). Its receipt, its job and the audit log stay. Twice is the same as once."""
    with transaction(services.database) as session:
        owner = changeable_project(session, caller, project)
        caller.require_coordinator(owner.coordinator)
        row = find_model(session, project, model, lock=True)
        delete_files(session, caller, row, services.clock())
        return model_documents(session, [row], services.clock())[0]


def send_model_file(
    services: Services, caller: Caller, request: Request, *, project: str, model: str, file: str
) -> Response:
    """Answer a file of a model and note the download, for the API and the dashboard. Call it in a thread.

    Raises:
        GramfuseError: see `find_readable_model`, `find_model_file` and `file_response`.
    """
    with transaction(services.database) as session:
        row = find_readable_model(session, caller, project, model, services.clock())
        if file == RECEIPT_FILE_NAME:
            return Response(receipt_text(row), media_type=MEDIA_TYPE, headers={"X-Content-Type-Options": "nosniff"})
        found = find_model_file(session, row, file)
        stored = StoredFile(name=found.name, bytes=found.bytes, sha256=found.sha256)
        audit_download(session, services, caller, request, project=f"{project}/{model}", file=stored)
    return file_response(request, services, stored)
