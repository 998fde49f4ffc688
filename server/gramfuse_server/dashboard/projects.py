"""What serves every page of a project, whoever looks: the newest of each kind, a policy in words, what would go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from gramfuse_server.dashboard.formats import as_written
from gramfuse_server.dashboard.sources import Sources
from gramfuse_server.intake.policies import find_policy, policy_document
from gramfuse_server.intake.projects import project_documents
from gramfuse_server.listing import PageRequest, newest_rows
from gramfuse_server.tables import ContributionRow, JobRow, ModelRow, ProjectRow, RequestRow
from gramfuse_shared.reporting.policies import describe_policy

NEWEST: Final = PageRequest(limit=20)
"""Of each kind of thing that a project has."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest of everything that a project has; `more` says of which there is more."""

    contributions: Sequence[ContributionRow]
    jobs: Sequence[JobRow]
    models: Sequence[ModelRow]
    requests: Sequence[RequestRow]
    more: Mapping[str, bool]


def newest_of(session: Session, project: ProjectRow, *of_models: ColumnElement[bool]) -> Newest:
    """Read the newest of everything that a project has, of its models those of which the conditions hold."""
    contributions, more_contributions = _newest(session, ContributionRow, project)
    jobs, more_jobs = _newest(session, JobRow, project)
    models, more_models = _newest(session, ModelRow, project, *of_models)
    requests, more_requests = _newest(session, RequestRow, project)
    more = {
        "contributions": more_contributions,
        "jobs": more_jobs,
        "models": more_models,
        "requests": more_requests,
    }
    return Newest(contributions, jobs, models, requests, more)


def current_policy(session: Session, project: ProjectRow) -> Mapping[str, Any]:
    """Describe a project's current policy in the words in which it is accepted, and as it is written."""
    policy = policy_document(find_policy(session, project.id, project.policy_version))
    return {"policy": policy, "rules": describe_policy(policy.policy), "as_written": as_written(policy.policy)}


def ask_deletion(session: Session, sources: Sources, project: ProjectRow) -> Mapping[str, Any]:
    """Describe a project that is about to be deleted."""
    (document,) = project_documents(session, [project], settings=sources.settings, now=sources.clock())
    return {"project": document, "delay": sources.settings.deletion_delay.total_seconds()}


def _newest(session: Session, table: Any, project: ProjectRow, *where: ColumnElement[bool]) -> tuple[list[Any], bool]:  # noqa: ANN401 - a table's class
    rows, cursor = newest_rows(session, table, NEWEST, project=project.id, where=where)
    return rows, cursor is not None
