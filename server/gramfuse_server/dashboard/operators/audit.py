"""What the page of the audit log shows, and how its form is read."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request

from gramfuse_server.audit_log import entry_of
from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.sources import Sources, part_asked
from gramfuse_server.database import reading
from gramfuse_server.listing import paginate
from gramfuse_server.operations.audit_search import SEARCH_PATTERN, AuditSearch
from gramfuse_server.tables import AuditRow
from gramfuse_shared.errors import RequestMalformedError

FIELDS: Final = ("action", "subject", "actor")


def read_audit(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read the rows that are asked for, the newest first."""
    asked = {name: _field(request, name) for name in FIELDS}
    query = AuditSearch(**asked).query()
    with reading(sources.database) as session:
        rows, cursor = paginate(session, query, part_asked(request), by=[AuditRow.sequence], descending=True)
        entries = [entry_of(row) for row in rows]
    filled = {name: value for name, value in asked.items() if value}
    return {
        "asked": {name: value or "" for name, value in asked.items()},
        "filled": filled,
        "entries": entries,
        "next_cursor": cursor,
        "following": "audit?" + (urlencode(filled) + "&" if filled else ""),
    }


def _field(request: Request, name: str) -> str | None:
    value = request.query_params.get(name, "").strip()
    if not value:
        return None
    if re.fullmatch(SEARCH_PATTERN, value) is None:
        msg = f"{name}: at most 128 printable ASCII characters without blanks can be searched for"
        raise RequestMalformedError(msg)
    return value
