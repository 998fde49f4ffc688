"""What an organization is shown of its projects."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gramfuse_server.auth import Caller, visible_project, visible_projects
from gramfuse_server.dashboard.members.standing import memberships
from gramfuse_server.dashboard.projects import newest, rules_of
from gramfuse_server.dashboard.sources import Sources, part_asked, project_in
from gramfuse_server.database import reading
from gramfuse_server.intake.contributions import contribution_documents
from gramfuse_server.intake.policies import find_policy, policy_document
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import job_documents, model_documents
from gramfuse_server.requests.documents import request_documents
from gramfuse_server.tables import ContributionRow, JobRow, ModelRow, ProjectRow, RequestRow


def read_projects(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the list of the organization's projects."""
    organization = caller.require_organization()
    with reading(sources.database) as session:
        rows, cursor = paginate(session, visible_projects(caller), part_asked(request), by=[ProjectRow.id])
        found = memberships(session, organization, rows, sources.clock())
        return {"memberships": found, "next_cursor": cursor}


def read_project(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read one project and the newest of everything in it; a list that goes on says so."""
    now, organization = sources.clock(), caller.require_organization()
    with reading(sources.database) as session:
        row = visible_project(session, caller, project_in(request))
        contributions, more_contributions = newest(session, ContributionRow, row.id)
        jobs, more_jobs = newest(session, JobRow, row.id)
        models, more_models = newest(session, ModelRow, row.id, ModelRow.deleted_at.is_(None))
        requests, more_requests = newest(session, RequestRow, row.id)
        policy = policy_document(find_policy(session, row.id, row.policy_version))
        (membership,) = memberships(session, organization, [row], now)
        return {
            "membership": membership,
            "project": membership.project,
            "policy": policy,
            "rules": rules_of(policy.policy),
            "contributions": contribution_documents(session, contributions, organization, now),
            "jobs": job_documents(session, jobs),
            "models": model_documents(session, models, now),
            "requests": request_documents(session, requests, organization, now),
            "coordinates": caller.coordinates(row.coordinator),
            "more": {
                "contributions": more_contributions,
                "jobs": more_jobs,
                "models": more_models,
                "requests": more_requests,
            },
        }
