"""Merged models: listed, downloaded, deleted."""

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.api.context import (
    CallerOf,
    FilePath,
    JobPath,
    ProjectPath,
    Services,
    ServicesOf,
    audit,
    declares,
)
from gramfuse_server.api.files import StoredFile, audit_download, declares_file, file_response
from gramfuse_server.api.paging import PageOf
from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import find_model, model_documents
from gramfuse_server.merging.releases import require_fetchable
from gramfuse_server.tables import ModelFileRow, ModelRow
from gramfuse_shared.contract.http_api import Model, Page
from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME, SignedReceipt
from gramfuse_shared.errors import ModelNotReleasedError, NotFoundError, RoleRequiredError

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
    with transaction(services.database) as session:
        row = _readable_model(session, services, caller, project, model)
        if file == RECEIPT_FILE_NAME:
            return _receipt(row)
        stored = _stored_file(session, row, file)
        audit_download(session, services, caller, request, project=f"{project}/{model}", file=stored)
    return file_response(request, services, stored)


@router.head("/{model}/files/{file}", response_class=Response, responses=declares_file(ModelNotReleasedError))
def describe_model_file(
    project: ProjectPath, model: JobPath, file: FilePath, request: Request, services: ServicesOf, caller: CallerOf
) -> Response:
    """Length and digest of a file of a model."""
    with reading(services.database) as session:
        row = _readable_model(session, services, caller, project, model)
        if file == RECEIPT_FILE_NAME:
            return _receipt(row)
        stored = _stored_file(session, row, file)
    return file_response(request, services, stored)


@router.delete("/{model}", responses=declares())
def delete_model(project: ProjectPath, model: JobPath, services: ServicesOf, caller: CallerOf) -> Model:
    """Delete a model's files (coordinator). Its receipt, its job and the audit log stay. Twice is the same as once."""
    with transaction(services.database) as session:
        owner = visible_project(session, caller, project, lock=True)
        caller.require_coordinator(owner.coordinator)
        row = find_model(session, project, model, lock=True)
        if row.deleted_at is None:
            row.deleted_at = row.delete_after = services.clock()
            session.flush()
            audit(session, services, caller, "model.delete", f"{project}/{model}")
        return model_documents(session, [row], services.clock())[0]


def _readable_model(session: Session, services: Services, caller: Caller, project: str, model: str) -> ModelRow:
    """Return a model whose files the caller may download.

    Raises:
        NotFoundError: there is none, or it is deleted.
        RoleRequiredError: the policy leaves downloads to the coordinator.
        ModelNotReleasedError: its policy's release gate holds it back.
    """
    owner = visible_project(session, caller, project)
    row = find_model(session, owner.id, model)
    if current_policy(session, owner).downloads == "coordinator" and caller.organization != owner.coordinator:
        msg = f"the policy leaves downloads to {owner.coordinator} (downloads: coordinator)"
        raise RoleRequiredError(msg)
    if row.deleted_at is not None:
        msg = f"model {model} was deleted; its receipt remains"
        raise NotFoundError(msg)
    require_fetchable(session, row, caller.organization, services.clock())
    return row


def _stored_file(session: Session, model: ModelRow, file: str) -> StoredFile:
    row = session.get(ModelFileRow, (model.project, model.id, file))
    if row is None:
        msg = f"model {model.id} has no file {file}"
        raise NotFoundError(msg)
    return StoredFile(name=row.name, bytes=row.bytes, sha256=row.sha256)


def _receipt(model: ModelRow) -> Response:
    content = SignedReceipt.parse(model.receipt).model_dump_json(indent=1) + "\n"
    return Response(content, media_type="application/octet-stream", headers={"X-Content-Type-Options": "nosniff"})
