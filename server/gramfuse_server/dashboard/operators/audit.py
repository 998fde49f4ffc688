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

FIELDS: Final = ("action", "subject", "actor")
_SEARCHABLE: Final = "at most 128 printable ASCII characters without blanks can be searched for"


def read_audit(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read the rows that are asked for, the newest first."""
    filled = {name: value for name in FIELDS if (value := request.query_params.get(name, "").strip())}
    wrong = [name for name, value in filled.items() if re.fullmatch(SEARCH_PATTERN, value) is None]
    with reading(sources.database) as session:
        query = AuditSearch(**({} if wrong else filled)).query()
        rows, cursor = paginate(session, query, part_asked(request), by=[AuditRow.sequence], descending=True)
        entries = [] if wrong else [entry_of(row) for row in rows]
    return {
        "message": f"{', '.join(wrong)}: {_SEARCHABLE}" if wrong else None,
        "asked": {name: filled.get(name, "") for name in FIELDS},
        "filled": filled,
        "entries": entries,
        "next_cursor": None if wrong else cursor,
        "following": "audit?" + (urlencode(filled) + "&" if filled else ""),
    }
