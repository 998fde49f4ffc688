"""An invitation taken back by the coordinator in a browser, after a question."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.dashboard.forms import Form, Led
from gramfuse_server.dashboard.sources import Sources, organization_in, project_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake import projects
from gramfuse_server.tables import ParticipantRow
from gramfuse_shared.errors import NotFoundError


def ask_uninviting(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the invitation that is about to be taken back."""
    organization = organization_in(request)
    with reading(sources.database) as session:
        row = visible_project(session, caller, project_in(request))
        caller.require_coordinator(row.coordinator)
        if session.get(ParticipantRow, (row.id, organization)) is None:
            msg = f"{organization} is not invited to {row.id}"
            raise NotFoundError(msg)
        return {"project": row.id, "organization": organization}


def uninvite(sources: Sources, form: Form) -> Led:
    """Take an invitation back."""
    with transaction(sources.database) as session:
        row = visible_project(session, form.caller, project_in(form.request), lock=True)
        projects.uninvite(session, form.caller, row, organization_in(form.request), sources.clock())
        return Led(f"projects/{row.id}")
