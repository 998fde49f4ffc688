"""Tokens: created by operators, shown once, revoked at once."""

from datetime import timedelta
from typing import Annotated, cast

from fastapi import APIRouter, Path
from sqlalchemy import select

from gramfuse_server.api.context import CallerOf, OperatorOf, ServicesOf, audit, declares
from gramfuse_server.api.paging import PageOf, paginate
from gramfuse_server.auth import issue_token
from gramfuse_server.database import reading, transaction
from gramfuse_server.tables import OrganizationRow, TokenRow
from gramfuse_shared.contract.http_api import Page, Role, TokenCreate, TokenCreated, TokenInfo
from gramfuse_shared.errors import NotFoundError, RequestMalformedError, RoleRequiredError

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])

TokenPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="the token's id, the part after gf_")]


@router.post("", status_code=201, responses=declares())
def create_token(body: TokenCreate, services: ServicesOf, caller: OperatorOf) -> TokenCreated:
    """Create a token (operator). Its secret is in this answer only."""
    if (body.role == "operator") != (body.organization is None):
        msg = "an operator's token belongs to no organization, every other token to one"
        raise RequestMalformedError(msg)
    with transaction(services.database) as session:
        if body.organization is not None and session.get(OrganizationRow, body.organization) is None:
            msg = f"there is no organization {body.organization}; create it first"
            raise NotFoundError(msg)
        row, token = issue_token(
            session,
            role=body.role,
            organization=body.organization,
            now=services.clock(),
            lifetime=timedelta(days=body.days),
        )
        details = {"role": row.role, "organization": row.organization, "days": body.days}
        audit(session, services, caller, "token.create", row.id, details)
        return TokenCreated(**token_document(row).model_dump(), token=token)


@router.get("", responses=declares())
def list_tokens(services: ServicesOf, caller: CallerOf, page: PageOf) -> Page[TokenInfo]:
    """List tokens without their secrets: an operator sees all, others those of their organization."""
    query = select(TokenRow)
    if caller.role != "operator":
        query = query.where(TokenRow.organization == caller.organization)
    with reading(services.database) as session:
        rows, cursor = paginate(session, query, page, by=[TokenRow.created_at, TokenRow.id])
        return Page(items=tuple(token_document(row) for row in rows), next_cursor=cursor)


@router.post("/{token}/revoke", responses=declares())
def revoke_token(token: TokenPath, services: ServicesOf, caller: CallerOf) -> TokenInfo:
    """Revoke a token: an operator any, a coordinator those of its organization. Twice is the same as once."""
    with transaction(services.database) as session:
        row = session.get(TokenRow, token, with_for_update=True)
        if row is None or (caller.role != "operator" and row.organization != caller.organization):
            msg = f"there is no token {token} that this caller may see"
            raise NotFoundError(msg)
        if caller.role == "participant":
            msg = "a coordinator's or an operator's token is needed to revoke tokens"
            raise RoleRequiredError(msg)
        if row.revoked_at is None:
            row.revoked_at = services.clock()
            audit(session, services, caller, "token.revoke", row.id)
        return token_document(row)


def token_document(row: TokenRow) -> TokenInfo:
    """Return a token as it is shown: without its secret."""
    return TokenInfo(
        id=row.id,
        role=cast("Role", row.role),
        organization=row.organization,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
