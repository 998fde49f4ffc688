"""What an organization is shown of a request: what is asked, who has answered, everybody's scores."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.dashboard.sources import Sources, project_in, request_in
from gramfuse_server.database import reading
from gramfuse_server.requests.documents import find_request, request_documents
from gramfuse_shared.contract.withholding import IN_SHORT


def read_request(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read a request; why an answer was refused is told of the organization's own alone."""
    with reading(sources.database) as session:
        row = find_request(session, visible_project(session, caller, project_in(request)).id, request_in(request))
        (asked,) = request_documents(session, [row], caller.organization, sources.clock())
    scores = [(place.organization, score) for place in asked.asked for score in place.scores]
    mine = next((place for place in asked.asked if place.organization == caller.organization), None)
    metrics = sorted({name for _, score in scores for name in score.metrics})
    return {"asked": asked, "mine": mine, "scores": scores, "metrics": metrics, "obstacles": IN_SHORT}
