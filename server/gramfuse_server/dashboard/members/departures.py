"""Who goes, in a browser, after a question: an invitation taken back, a member removed, one's own leaving, and all."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gramfuse_server.auth import Caller, changeable_project, visible_project
from gramfuse_server.dashboard.forms import Form, Led
from gramfuse_server.dashboard.projects import ask_deletion
from gramfuse_server.dashboard.sources import Sources, organization_in, project_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.ending import delete_project, end_membership
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.tables import ParticipantRow
from gramfuse_shared.errors import NotFoundError


def ask_ending(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the participant whose invitation, or membership, is about to end."""
    organization = organization_in(request)
    with reading(sources.database) as session:
        row = visible_project(session, caller, project_in(request))
        if organization != caller.organization:
            caller.require_coordinator(row.coordinator)
        if session.get(ParticipantRow, (row.id, organization)) is None:
            msg = f"{organization} does not take part in {row.id}"
            raise NotFoundError(msg)
        return {
            "project": row.id,
            "organization": organization,
            "own": organization == caller.organization,
            "frozen": current_policy(session, row).cohorts == "frozen",
            "delay": sources.settings.deletion_delay.total_seconds(),
        }


def uninvite(sources: Sources, form: Form) -> Led:
    """Take an invitation back."""
    return _end(sources, form, joined=False)


def remove(sources: Sources, form: Form) -> Led:
    """End a membership: another's, or one's own."""
    return _end(sources, form, joined=True)


def ask_deleting(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the project that is about to be deleted."""
    with reading(sources.database) as session:
        row = visible_project(session, caller, project_in(request))
        caller.require_coordinator(row.coordinator)
        return ask_deletion(session, sources, row)


def delete(sources: Sources, form: Form) -> Led:
    """Delete a project."""
    with transaction(sources.database) as session:
        row = visible_project(session, form.caller, project_in(form.request), lock=True)
        form.caller.require_coordinator(row.coordinator)
        delete_project(session, form.caller, row, queue=sources.queue, settings=sources.settings, now=sources.clock())
        return Led(f"projects/{row.id}")


def _end(sources: Sources, form: Form, *, joined: bool) -> Led:
    organization = organization_in(form.request)
    with transaction(sources.database) as session:
        row = changeable_project(session, form.caller, project_in(form.request))
        end_membership(
            session,
            form.caller,
            row,
            organization,
            joined=joined,
            queue=sources.queue,
            settings=sources.settings,
            now=sources.clock(),
        )
        return Led("projects" if organization == form.caller.organization else f"projects/{row.id}")
