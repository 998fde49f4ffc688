"""What serves every page of a project, whoever looks: the newest of each kind, and a policy in words."""

from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from gramfuse_server.listing import PageRequest, newest_rows
from gramfuse_shared.contract.policy import Policy

NEWEST: Final = PageRequest(limit=20)
"""Of each kind of thing that a project has."""


def newest(session: Session, table: Any, project: str, *where: ColumnElement[bool]) -> tuple[list[Any], bool]:  # noqa: ANN401 - a table's class
    """Return the newest of what a project has, and whether there is more."""
    rows, cursor = newest_rows(session, table, NEWEST, project=project, where=where)
    return rows, cursor is not None


def rules_of(policy: Policy) -> list[tuple[str, str, str]]:
    """Return a policy's fields: name, value and what the contract says of it. Fields that do not apply are left out."""
    rules = []
    for name, field in Policy.model_fields.items():
        value = getattr(policy, name)
        if value is None or name == "format":
            continue
        rules.append((name, _written(value), field.description or ""))
    return rules


def _written(value: object) -> str:
    if isinstance(value, BaseModel):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
