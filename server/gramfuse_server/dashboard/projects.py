"""What serves every page of a project, whoever looks: the newest of each kind, and a policy in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from gramfuse_server.intake.policies import find_policy, policy_document
from gramfuse_server.listing import PageRequest, newest_rows
from gramfuse_server.tables import ContributionRow, JobRow, ModelRow, ProjectRow, RequestRow
from gramfuse_shared.contract.policy import Policy

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


def describe_policy(session: Session, project: ProjectRow) -> Mapping[str, Any]:
    """Describe a project's current policy, field by field."""
    policy = policy_document(find_policy(session, project.id, project.policy_version))
    return {"policy": policy, "rules": rules_of(policy.policy)}


def rules_of(policy: Policy) -> list[tuple[str, str, str]]:
    """Return a policy's fields: name, value and what the contract says of it. Fields that do not apply are left out."""
    rules = []
    for name, field in Policy.model_fields.items():
        value = getattr(policy, name)
        if value is None or name == "format":
            continue
        rules.append((name, _written(value), field.description or ""))
    return rules


def _newest(session: Session, table: Any, project: ProjectRow, *where: ColumnElement[bool]) -> tuple[list[Any], bool]:  # noqa: ANN401 - a table's class
    rows, cursor = newest_rows(session, table, NEWEST, project=project.id, where=where)
    return rows, cursor is not None


def _written(value: object) -> str:
    if isinstance(value, BaseModel):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
