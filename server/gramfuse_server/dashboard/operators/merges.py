"""What operators are shown of a job and of the model that it made."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.merges import describe_merge, describe_model, receipt_file
from gramfuse_server.dashboard.sources import Sources, job_in, part_asked, project_in
from gramfuse_server.database import reading
from gramfuse_server.merging.documents import find_job, find_model
from gramfuse_server.operations.merges import admin_models, find_card, job_with_attempts, with_card
from gramfuse_server.operations.projects import find_project


def read_job(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read a job with everything that is told of it."""
    with reading(sources.database) as session:
        project = find_project(session, project_in(request))
        row = find_job(session, project.id, job_in(request))
        job = job_with_attempts(session, row)
        told = describe_merge(session, row, viewer=None, lines=part_asked(request))
        may_prioritize = job.state != "succeeded" and project.deleted_at is None
        acts = {"acts": (), "may_prioritize": may_prioritize, "api": "/v1/admin"}
        return {**told, "job": job, "attempts": job.attempts, **acts}


def read_model(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read a model with its card and its receipt; of its files the receipt alone may be downloaded."""
    with reading(sources.database) as session:
        project = find_project(session, project_in(request)).id
        (document,) = admin_models(session, [find_model(session, project, job_in(request))], sources.clock())
        card = find_card(session, document)
    model = with_card(document, card, sources.blobs)
    return {
        **describe_model(model),
        "card": model.card,
        "downloads": False,
        "withheld": None,
    }


def send_receipt(sources: Sources, request: Request, _: Caller) -> Response:
    """Answer a model's receipt as a file."""
    with reading(sources.database) as session:
        project = find_project(session, project_in(request)).id
        return receipt_file(find_model(session, project, job_in(request)))
