"""What operators are shown of projects, and the end of one."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.forms import Form, Led
from gramfuse_server.dashboard.projects import ask_deletion, current_policy, newest_of
from gramfuse_server.dashboard.sources import Sources, part_asked, project_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.ending import delete_project
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import job_documents
from gramfuse_server.operations.merges import admin_models
from gramfuse_server.operations.projects import (
    admin_requests,
    contribution_documents,
    find_project,
    project_documents,
)
from gramfuse_server.tables import ProjectRow


def read_projects(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read the list of projects."""
    with reading(sources.database) as session:
        rows, cursor = paginate(session, select(ProjectRow), part_asked(request), by=[ProjectRow.id])
        return {"projects": _documents(session, sources, rows), "next_cursor": cursor}


def read_project(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read one project and the newest of everything in it; a list that goes on says so."""
    now = sources.clock()
    with reading(sources.database) as session:
        row = find_project(session, project_in(request))
        found = newest_of(session, row)
        return {
            "project": _documents(session, sources, [row])[0],
            **current_policy(session, row),
            "contributions": contribution_documents(session, found.contributions, now),
            "jobs": job_documents(session, found.jobs),
            "models": admin_models(session, found.models, now),
            "requests": admin_requests(session, found.requests, now),
            "more": found.more,
        }


def ask_deleting(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read the project that is about to be deleted."""
    with reading(sources.database) as session:
        return ask_deletion(session, sources, find_project(session, project_in(request)))


def delete(sources: Sources, form: Form) -> Led:
    """Delete a project."""
    form.caller.require_operator()
    with transaction(sources.database) as session:
        row = find_project(session, project_in(form.request), lock=True)
        delete_project(session, form.caller, row, queue=sources.queue, settings=sources.settings, now=sources.clock())
        return Led(f"projects/{row.id}")


def _documents(session: Session, sources: Sources, rows: list[ProjectRow]) -> list[Any]:
    return list(project_documents(session, rows, settings=sources.settings, now=sources.clock()))
