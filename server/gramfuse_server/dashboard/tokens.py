"""The pages of tokens: listed, created, revoked. Operators see all tokens, others those of their organization."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from starlette.requests import Request

from gramfuse_server import tokens
from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.forms import Form, Led, Shown
from gramfuse_server.dashboard.sources import Sources, part_asked, token_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.listing import paginate
from gramfuse_server.tables import OrganizationRow, TokenRow
from gramfuse_shared.contract.http_api import TokenCreate
from gramfuse_shared.errors import RequestMalformedError


def read_tokens(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the tokens that the caller may see, the newest first, and the organizations that may be given one."""
    by = [TokenRow.created_at, TokenRow.id]
    with reading(sources.database) as session:
        rows, cursor = paginate(session, tokens.visible(caller), part_asked(request), by=by, descending=True)
        names = select(OrganizationRow.name).order_by(OrganizationRow.name)
        return {
            "tokens": [tokens.token_document(row) for row in rows],
            "next_cursor": cursor,
            "organizations": session.scalars(names).all() if caller.role == "operator" else None,
            "may_revoke": caller.role != "participant",
        }


def read_token(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the token that is about to be revoked."""
    with reading(sources.database) as session:
        return {"token": tokens.token_document(tokens.find_revocable(session, caller, token_in(request)))}


def create_token(sources: Sources, form: Form) -> Shown:
    """Create a token and show it, this once."""
    with transaction(sources.database) as session:
        created = tokens.create(session, form.caller, _wanted(form.fields), sources.clock())
    return Shown("token_created.html", 201, {"token": created})


def revoke_token(sources: Sources, form: Form) -> Led:
    """Revoke a token."""
    with transaction(sources.database) as session:
        tokens.revoke(session, form.caller, token_in(form.request), sources.clock())
    return Led("tokens")


def _wanted(fields: Mapping[str, str]) -> TokenCreate:
    wanted = {"role": fields.get("role"), "organization": fields.get("organization") or None}
    try:
        return TokenCreate.model_validate_strings(wanted | {"days": fields.get("days")})
    except ValidationError as error:
        names = ", ".join(sorted({str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}))
        msg = f"no token can be made of what the form says ({names})"
        raise RequestMalformedError(msg) from error
