"""Tokens: created by operators, shown once, revoked at once."""

from typing import Annotated

from fastapi import APIRouter, Path

from gramfuse_server import tokens
from gramfuse_server.api.context import CallerOf, OperatorOf, ServicesOf, declares
from gramfuse_server.api.paging import PageOf
from gramfuse_server.database import reading, transaction
from gramfuse_server.listing import paginate
from gramfuse_server.tables import TokenRow
from gramfuse_shared.contract.http_api import Page, TokenCreate, TokenCreated, TokenInfo

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])

TokenPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="the token's id, the part after gf_")]


@router.post("", status_code=201, responses=declares())
def create_token(body: TokenCreate, services: ServicesOf, caller: OperatorOf) -> TokenCreated:
    """Create a token (operator). Its secret is in this answer only."""
    with transaction(services.database) as session:
        return tokens.create(session, caller, body, services.clock())


@router.get("", responses=declares())
def list_tokens(services: ServicesOf, caller: CallerOf, page: PageOf) -> Page[TokenInfo]:
    """List tokens without their secrets: an operator sees all, others those of their organization."""
    with reading(services.database) as session:
        rows, cursor = paginate(session, tokens.visible(caller), page, by=[TokenRow.created_at, TokenRow.id])
        return Page(items=tuple(tokens.token_document(row) for row in rows), next_cursor=cursor)


@router.post("/{token}/revoke", responses=declares())
def revoke_token(token: TokenPath, services: ServicesOf, caller: CallerOf) -> TokenInfo:
    """Revoke a token: an operator any, a coordinator those of its organization. Twice is the same as once."""
    with transaction(services.database) as session:
        return tokens.revoke(session, caller, token, services.clock())
