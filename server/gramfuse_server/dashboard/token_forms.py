"""The pages of tokens: listed, created, revoked. Forms are their session's own; each act stands in the audit log."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gramfuse_server import tokens
from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.browser import NO_STORE, read_form, root_of
from gramfuse_server.dashboard.entrance import Entrance, require_own_form
from gramfuse_server.dashboard.rendering import Renderer
from gramfuse_server.dashboard.sources import Sources, part_asked, token_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.listing import paginate
from gramfuse_server.tables import OrganizationRow, TokenRow
from gramfuse_shared.contract.http_api import TokenCreate
from gramfuse_shared.errors import NotFoundError, RequestMalformedError


def read_tokens(sources: Sources, request: Request) -> Mapping[str, Any]:
    """Read the tokens, the newest first, and the organizations that may be given one."""
    by = [TokenRow.created_at, TokenRow.id]
    with reading(sources.database) as session:
        rows, cursor = paginate(session, select(TokenRow), part_asked(request), by=by, descending=True)
        return {
            "tokens": [tokens.token_document(row) for row in rows],
            "next_cursor": cursor,
            "organizations": session.scalars(select(OrganizationRow.name).order_by(OrganizationRow.name)).all(),
        }


def read_token(sources: Sources, request: Request) -> Mapping[str, Any]:
    """Read the token that is about to be revoked."""
    with reading(sources.database) as session:
        row = session.get(TokenRow, token_in(request))
        if row is None:
            msg = "there is no such token"
            raise NotFoundError(msg)
        return {"token": tokens.token_document(row)}


class TokenForms:
    """Takes the forms."""

    def __init__(self, sources: Sources, renderer: Renderer, entrance: Entrance) -> None:
        self._sources = sources
        self._renderer = renderer
        self._entrance = entrance

    async def create(self, request: Request) -> Response:
        """Create a token and show it, this once."""
        form = await read_form(request)
        return await run_in_threadpool(self._create, request, form)

    async def revoke(self, request: Request) -> Response:
        """Revoke a token."""
        form = await read_form(request)
        return await run_in_threadpool(self._revoke, request, form)

    def _create(self, request: Request, form: dict[str, str]) -> Response:
        visitor = self._entrance.visitor(request)
        if visitor is None:
            return self._entrance.turn_away(request)
        require_own_form(form, visitor)
        wanted = _wanted(form)
        with transaction(self._sources.database) as session:
            created = tokens.create(session, _operator(visitor.token), wanted, self._sources.clock())
        return self._renderer.render(request, "token_created.html", status=201, visitor=visitor, token=created)

    def _revoke(self, request: Request, form: dict[str, str]) -> Response:
        visitor = self._entrance.visitor(request)
        if visitor is None:
            return self._entrance.turn_away(request)
        require_own_form(form, visitor)
        with transaction(self._sources.database) as session:
            tokens.revoke(session, _operator(visitor.token), token_in(request), self._sources.clock())
        return RedirectResponse(f"{root_of(request)}tokens", status_code=303, headers=NO_STORE)


def _operator(token: str) -> Caller:
    """Return the caller that a visitor is: only operators sign in."""
    return Caller(token=token, role="operator", organization=None, expires_at=None)


def _wanted(form: dict[str, str]) -> TokenCreate:
    fields = {"role": form.get("role"), "organization": form.get("organization") or None, "days": form.get("days")}
    try:
        return TokenCreate.model_validate_strings(fields)
    except ValidationError as error:
        names = ", ".join(sorted({str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}))
        msg = f"no token can be made of what the form says ({names})"
        raise RequestMalformedError(msg) from error
