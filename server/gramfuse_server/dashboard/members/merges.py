"""What an organization is shown of a job, and of the model that it made; its files, by the API's own rules."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.dashboard.merges import describe_merge, describe_model, receipt_file
from gramfuse_server.dashboard.sources import Sources, file_in, job_in, part_asked, project_in
from gramfuse_server.database import reading
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.merging.documents import find_job, find_model, job_documents, model_documents
from gramfuse_server.merging.model_files import find_readable_model
from gramfuse_server.operations.merges import read_card
from gramfuse_server.tables import ModelFileRow
from gramfuse_shared.contract.receipt import CARD_FILE_NAME
from gramfuse_shared.errors import GramfuseError


def read_job(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read a job: by name the organization's own distances alone."""
    with reading(sources.database) as session:
        owner = visible_project(session, caller, project_in(request))
        row = find_job(session, owner.id, job_in(request))
        (job,) = job_documents(session, [row])
        acts: tuple[str, ...] = ()
        if caller.coordinates(owner.coordinator) and owner.deleted_at is None:
            acts = ("cancel",) if job.state in UNFINISHED else ("retry",) if job.state != "succeeded" else ()
        told = describe_merge(session, row, viewer=caller.organization, lines=part_asked(request))
        return {**told, "job": job, "attempts": None, "acts": acts, "api": "/v1"}


def read_model(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read a model with its receipt, and with its card where its files may be downloaded."""
    with reading(sources.database) as session:
        project, name = project_in(request), job_in(request)
        row = find_model(session, visible_project(session, caller, project).id, name)
        (model,) = model_documents(session, [row], sources.clock())
        withheld = _why_withheld(session, sources, caller, project, name)
        card = None if withheld else session.get(ModelFileRow, (project, name, CARD_FILE_NAME))
    return {
        **describe_model(model),
        "card": None if card is None else read_card(card, sources.blobs),
        "downloads": withheld is None,
        "withheld": withheld,
    }


def send_file(sources: Sources, request: Request, caller: Caller) -> Response:
    """Answer a file of a model."""
    return sources.send_file(caller, request, project=project_in(request), model=job_in(request), file=file_in(request))


def send_receipt(sources: Sources, request: Request, caller: Caller) -> Response:
    """Answer a model's receipt as a file: who may see a model may see its receipt, deleted and held back or not."""
    with reading(sources.database) as session:
        project = visible_project(session, caller, project_in(request)).id
        return receipt_file(find_model(session, project, job_in(request)))


def _why_withheld(session: Session, sources: Sources, caller: Caller, project: str, model: str) -> str | None:
    try:
        find_readable_model(session, caller, project, model, sources.clock())
    except GramfuseError as error:
        return error.message
    return None
