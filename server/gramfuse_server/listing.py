"""Lists in parts: a limit and an opaque cursor that says after which row to go on. For the API and the dashboard."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Select, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from gramfuse_server.tables import Row
from gramfuse_shared.errors import RequestMalformedError

MAX_CURSOR_CHARACTERS: Final = 512
_MAX_INTEGER: Final = 2**63 - 1

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list was asked for."""

    limit: int
    cursor: str | None = None


def paginate(
    session: Session,
    query: Select[R],
    page: PageRequest,
    *,
    by: Sequence[InstrumentedAttribute[Any]],
    descending: bool = False,
) -> tuple[list[R], str | None]:
    """Return the rows of a page and the cursor of the next one.

    Args:
        session: where to ask.
        query: all rows that the caller may see, without an order.
        page: the part that was asked for.
        by: columns that together are unique; the order.
        descending: the order's direction.

    Raises:
        RequestMalformedError: the cursor is none of ours.
    """
    if page.cursor is not None:
        after = tuple_(*(literal(value, c.type) for value, c in zip(_decode(page.cursor, by), by, strict=True)))
        here = tuple_(*by)
        query = query.where(here < after if descending else here > after)
    query = query.order_by(*(column.desc() if descending else column.asc() for column in by))
    rows = list(session.scalars(query.limit(page.limit + 1)))
    if len(rows) <= page.limit:
        return rows, None
    last = rows[page.limit - 1]
    return rows[: page.limit], _encode([getattr(last, column.key) for column in by])


def newest_rows(
    session: Session,
    table: Any,  # noqa: ANN401 - a table of what projects have, each thing named within its own
    page: PageRequest,
    *,
    project: str | None,
    where: Sequence[ColumnElement[bool]] = (),
) -> tuple[list[Any], str | None]:
    """Return a page of what one project has, or all have, the newest first; raises as `paginate`."""
    conditions = where if project is None else (*where, table.project == project)
    by = [table.created_at, table.project, table.id]
    return paginate(session, select(table).where(*conditions), page, by=by, descending=True)


def _encode(values: list[Any]) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(plain, separators=(",", ":")).encode()).decode().rstrip("=")


def _decode(cursor: str, by: Sequence[InstrumentedAttribute[Any]]) -> list[Any]:
    msg = "the cursor is not one that this list gave; start without one"
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(by):
            raise RequestMalformedError(msg)
        return [_parse(value, column.type.python_type) for value, column in zip(values, by, strict=True)]
    except (ValueError, RecursionError, binascii.Error) as error:
        raise RequestMalformedError(msg) from error


def _parse(value: Any, kind: type) -> Any:  # noqa: ANN401 - it was just parsed from JSON
    if kind is datetime and isinstance(value, str):
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            msg = "a naive time"
            raise ValueError(msg)
        return at
    if kind is int and type(value) is int and 0 <= value <= _MAX_INTEGER:
        return value
    if kind is str and isinstance(value, str) and value.isprintable():
        return value
    msg = f"not a {kind.__name__}"
    raise ValueError(msg)
