"""What an organization is shown of a request: what is asked, who has answered, everybody's scores."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.dashboard.sources import Sources, project_in, request_in
from gramfuse_server.database import reading
from gramfuse_server.requests.documents import find_request, request_documents
from gramfuse_shared.contract.metrics import LOWER_IS_BETTER
from gramfuse_shared.contract.requests import Asked
from gramfuse_shared.contract.withholding import IN_SHORT
from gramfuse_shared.reporting.evaluations import score_tables


def read_request(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read a request; why an answer was refused is told of the organization's own alone."""
    with reading(sources.database) as session:
        row = find_request(session, visible_project(session, caller, project_in(request)).id, request_in(request))
        (asked,) = request_documents(session, [row], caller.organization, sources.clock())
    mine = next((place for place in asked.asked if place.organization == caller.organization), None)
    return {
        "asked": asked,
        "mine": mine,
        "tables": score_tables(asked),
        "examples": {place.organization: _examples(place) for place in asked.asked},
        "lower_is_better": LOWER_IS_BETTER,
        "obstacles": IN_SHORT,
    }


def _examples(place: Asked) -> str:
    counts = sorted({score.examples for score in place.scores})
    return "–".join(f"{count:,}" for count in (counts[0], *counts[1:][-1:])) if counts else "–"
