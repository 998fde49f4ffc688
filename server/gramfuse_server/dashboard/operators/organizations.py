"""What operators are shown of organizations."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from starlette.requests import Request

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.sources import Sources, part_asked
from gramfuse_server.database import reading
from gramfuse_server.listing import paginate
from gramfuse_server.operations.organizations import organization_documents
from gramfuse_server.tables import OrganizationRow


def read_organizations(sources: Sources, request: Request, _: Caller) -> Mapping[str, Any]:
    """Read the list of organizations."""
    with reading(sources.database) as session:
        rows, cursor = paginate(session, select(OrganizationRow), part_asked(request), by=[OrganizationRow.name])
        return {"organizations": organization_documents(session, rows, sources.clock()), "next_cursor": cursor}
