"""What operators are shown of a contribution: its state and its checks, not why it was refused."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.checks import checks_of
from gramfuse_server.dashboard.sources import Sources, contribution_in, project_in
from gramfuse_server.database import reading
from gramfuse_server.intake.contributions import find_contribution
from gramfuse_server.operations.projects import contribution_documents, find_project


def read_contribution(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read a contribution."""
    with reading(sources.database) as session:
        project = find_project(session, project_in(request))
        row = find_contribution(session, project, contribution_in(request))
        (contribution,) = contribution_documents(session, [row], sources.clock())
    return {"project": project.id, "contribution": contribution, "checks": checks_of(contribution)}
