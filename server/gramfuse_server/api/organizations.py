"""Organizations: created by operators."""

from fastapi import APIRouter, Response
from sqlalchemy import select

from gramfuse_server.api.context import OperatorOf, OrganizationPath, ServicesOf, audit, declares
from gramfuse_server.api.paging import PageOf
from gramfuse_server.database import insert_if_absent, reading, transaction
from gramfuse_server.listing import paginate
from gramfuse_server.tables import OrganizationRow
from gramfuse_shared.contract.http_api import Organization, Page

router = APIRouter(prefix="/v1/organizations", tags=["organizations"])


@router.put(
    "/{organization}",
    status_code=201,
    responses=declares() | {200: {"model": Organization, "description": "It exists already"}},
)
def create_organization(
    organization: OrganizationPath, response: Response, services: ServicesOf, caller: OperatorOf
) -> Organization:
    """Create an organization (operator)."""
    with transaction(services.database) as session:
        values = {"name": organization, "created_at": services.clock()}
        if insert_if_absent(session, OrganizationRow, values):
            audit(session, services, caller, "organization.create", organization)
        else:
            response.status_code = 200
        return _document(session.get_one(OrganizationRow, organization))


@router.get("", responses=declares())
def list_organizations(services: ServicesOf, _: OperatorOf, page: PageOf) -> Page[Organization]:
    """List all organizations by name (operator)."""
    with reading(services.database) as session:
        rows, cursor = paginate(session, select(OrganizationRow), page, by=[OrganizationRow.name])
        return Page(items=tuple(_document(row) for row in rows), next_cursor=cursor)


def _document(row: OrganizationRow) -> Organization:
    return Organization(name=row.name, created_at=row.created_at)
