"""What operators are shown of projects."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.projects import newest, rules_of
from gramfuse_server.dashboard.sources import Sources, part_asked, project_in
from gramfuse_server.database import reading
from gramfuse_server.intake.policies import find_policy, policy_document
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import job_documents
from gramfuse_server.operations.merges import admin_models
from gramfuse_server.operations.projects import (
    admin_requests,
    contribution_documents,
    find_project,
    project_documents,
)
from gramfuse_server.tables import ContributionRow, JobRow, ModelRow, ProjectRow, RequestRow


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
        contributions, more_contributions = newest(session, ContributionRow, row.id)
        jobs, more_jobs = newest(session, JobRow, row.id)
        models, more_models = newest(session, ModelRow, row.id)
        requests, more_requests = newest(session, RequestRow, row.id)
        policy = policy_document(find_policy(session, row.id, row.policy_version))
        return {
            "project": _documents(session, sources, [row])[0],
            "policy": policy,
            "rules": rules_of(policy.policy),
            "contributions": contribution_documents(session, contributions, now),
            "jobs": job_documents(session, jobs),
            "models": admin_models(session, models, now),
            "requests": admin_requests(session, requests, now),
            "more": {
                "contributions": more_contributions,
                "jobs": more_jobs,
                "models": more_models,
                "requests": more_requests,
            },
        }


def _documents(session: Session, sources: Sources, rows: list[ProjectRow]) -> list[Any]:
    return list(project_documents(session, rows, settings=sources.settings, now=sources.clock()))
