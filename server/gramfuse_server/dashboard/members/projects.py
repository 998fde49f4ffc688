"""What an organization is shown of its projects."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gramfuse_server.auth import Caller, visible_project, visible_projects
from gramfuse_server.dashboard.members.standing import memberships
from gramfuse_server.dashboard.projects import current_policy, newest_of
from gramfuse_server.dashboard.sources import Sources, part_asked, project_in
from gramfuse_server.database import reading
from gramfuse_server.intake.contributions import contribution_documents
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import job_documents, model_documents
from gramfuse_server.requests.documents import request_documents
from gramfuse_server.standing import standing_contributions
from gramfuse_server.tables import ModelRow, ProjectRow


def read_projects(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the list of the organization's projects."""
    organization = caller.require_organization()
    with reading(sources.database) as session:
        rows, cursor = paginate(session, visible_projects(caller), part_asked(request), by=[ProjectRow.id])
        found = memberships(session, organization, rows, settings=sources.settings, now=sources.clock())
        return {"memberships": found, "next_cursor": cursor}


def read_project(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read one project and the newest of everything in it; a list that goes on says so."""
    now, organization = sources.clock(), caller.require_organization()
    with reading(sources.database) as session:
        row = visible_project(session, caller, project_in(request))
        found = newest_of(session, row, ModelRow.deleted_at.is_(None))
        (membership,) = memberships(session, organization, [row], settings=sources.settings, now=now)
        policy = current_policy(session, row)
        standing = len(standing_contributions(session, row.id))
        summed = policy["policy"].policy.aggregation == "secure"
        enough = standing >= policy["policy"].policy.minimum_cohort
        return {
            "membership": membership,
            "project": membership.project,
            **policy,
            "standing": standing,
            "coordinates": caller.coordinates(row.coordinator) and row.deleted_at is None,
            "may_merge": enough and not summed and caller.coordinates(row.coordinator),
            "contributions": contribution_documents(session, found.contributions, organization, now),
            "jobs": job_documents(session, found.jobs),
            "models": model_documents(session, found.models, now),
            "requests": request_documents(session, found.requests, organization, now),
            "more": found.more,
        }
