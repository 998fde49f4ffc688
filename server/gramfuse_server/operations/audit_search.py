"""The audit log searched: which rows an operator asks for."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from gramfuse_server.tables import AuditRow

SEARCH_PATTERN: Final = r"^[!-~]{1,128}$"
"""Everything in these columns is printable ASCII without blanks."""

OPERATOR: Final = "operator"
SERVER: Final = "server"


@dataclass(frozen=True, slots=True)
class AuditSearch:
    """Conditions that all hold.

    Attributes:
        action, subject: parts of them, whatever their case.
        actor: an organization or a token's id as a whole; `operator`: whoever belongs to none; `server`: nobody.
    """

    action: str | None = None
    subject: str | None = None
    actor: str | None = None

    def query(self) -> Select[AuditRow]:
        """Return the rows, without an order."""
        query = select(AuditRow)
        for column, wanted in ((AuditRow.action, self.action), (AuditRow.subject, self.subject)):
            if wanted is not None:
                query = query.where(_contains(column, wanted))
        return query if self.actor is None else query.where(_is_by(self.actor))


def _contains(column: InstrumentedAttribute[str], wanted: str) -> ColumnElement[bool]:
    return func.lower(column).contains(wanted.lower(), autoescape=True)


def _is_by(actor: str) -> ColumnElement[bool]:
    by_name = or_(AuditRow.organization == actor, AuditRow.token == actor)
    if actor == OPERATOR:
        return or_(by_name, AuditRow.organization.is_(None) & AuditRow.token.is_not(None))
    if actor == SERVER:
        return or_(by_name, AuditRow.organization.is_(None) & AuditRow.token.is_(None))
    return by_name
