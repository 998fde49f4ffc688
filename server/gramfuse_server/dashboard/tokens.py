"""The pages of tokens: listed, created, revoked. Operators see all tokens, others those of their organization."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import select
from starlette.requests import Request

from gramfuse_server import tokens
from gramfuse_server.auth import Caller, token_state
from gramfuse_server.dashboard.forms import Form, Led, Shown
from gramfuse_server.dashboard.sources import ROWS, Sources, part_asked, token_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.listing import PageRequest, paginate
from gramfuse_server.tables import OrganizationRow, TokenRow
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.http_api import Role, TokenCreate
from gramfuse_shared.errors import GramfuseError, RequestMalformedError

_ROLES: Final[tuple[Role, ...]] = ("participant", "coordinator", "operator")
"""The one that may least comes first: it is chosen unless somebody chooses."""


def read_tokens(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the tokens that the caller may see, the newest first, and the organizations that may be given one."""
    return _listed(sources, caller, part_asked(request)) | {"message": None, "filled": {}}


def _listed(sources: Sources, caller: Caller, part: PageRequest) -> dict[str, Any]:
    by = [TokenRow.created_at, TokenRow.id]
    with reading(sources.database) as session:
        rows, cursor = paginate(session, tokens.visible(caller), part, by=by, descending=True)
        names = select(OrganizationRow.name).order_by(OrganizationRow.name)
        return {
            "tokens": [tokens.token_document(row) for row in rows],
            "states": {row.id: token_state(row, sources.clock()) for row in rows},
            "next_cursor": cursor,
            "organizations": session.scalars(names).all() if caller.role == "operator" else None,
            "roles": _ROLES,
            "may_revoke": caller.role != "participant",
        }


def read_token(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the token that is about to be revoked."""
    with reading(sources.database) as session:
        return {"token": tokens.token_document(tokens.find_revocable(session, caller, token_in(request)))}


def create_token(sources: Sources, form: Form) -> Shown:
    """Create a token and show it, this once; a form that makes none is shown again, with what was filled in and why."""
    form.caller.require_operator()
    try:
        with transaction(sources.database) as session:
            created = tokens.create(session, form.caller, _wanted(form.fields), sources.clock())
    except GramfuseError as error:
        values = _listed(sources, form.caller, PageRequest(limit=ROWS))
        return Shown("tokens.html", error.status, values | {"message": error.message, "filled": form.fields})
    return Shown("token_created.html", 201, {"token": created})


def revoke_token(sources: Sources, form: Form) -> Led:
    """Revoke a token."""
    with transaction(sources.database) as session:
        tokens.revoke(session, form.caller, token_in(form.request), sources.clock())
    return Led("tokens")


def _wanted(fields: Mapping[str, str]) -> TokenCreate:
    wanted = {name: value for name in TokenCreate.model_fields if (value := fields.get(name, "").strip())}
    try:
        token = TokenCreate.model_validate_strings(wanted)
    except ValidationError as error:
        raise RequestMalformedError(describe_validation("the form", error.errors())) from error
    if token.role != "operator" and token.organization is None:
        msg = f"choose the organization that the {token.role}'s token is for; an operator's alone belongs to none"
        raise RequestMalformedError(msg)
    return token
