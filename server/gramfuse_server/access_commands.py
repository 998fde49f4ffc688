"""The commands `gramfuse-server org …` and `gramfuse-server token …`: who may do something at all."""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, cast

import typer
from sqlalchemy import select

from gramfuse_server import audit_log, schema, tokens
from gramfuse_server.auth import is_valid, token_id, token_state
from gramfuse_server.clock import system_clock
from gramfuse_server.database import insert_if_absent, reading, transaction
from gramfuse_server.settings import load_settings
from gramfuse_server.tables import OrganizationRow, TokenRow
from gramfuse_shared.contract.http_api import Role
from gramfuse_shared.errors import NotFoundError, RequestMalformedError
from gramfuse_shared.identifiers import IN_WORDS, SLUG_PATTERN
from gramfuse_shared.shell import printing

token_commands: Final = typer.Typer(help="Create, list and revoke tokens.", no_args_is_help=True)
organization_commands: Final = typer.Typer(help="Create and list organizations.", no_args_is_help=True)


@token_commands.command("create")
def create_token(
    operator: Annotated[bool, typer.Option("--operator", help="A token that administers the server.")] = False,
    org: Annotated[str | None, typer.Option(help="The organization that the token speaks for.")] = None,
    role: Annotated[str, typer.Option(help="coordinator or participant")] = "participant",
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days until it expires.")] = 90,
) -> None:
    """Create a token and print it, this once.

    Examples: gramfuse-server token create --org acme --role coordinator · gramfuse-server token create --operator
    """
    if operator == (org is not None):
        msg = "give either --operator, or --org ORG with --role coordinator|participant"
        raise RequestMalformedError(msg)
    if role not in {"coordinator", "participant"}:
        msg = "the role is coordinator or participant"
        raise RequestMalformedError(msg)
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        if org is not None and session.get(OrganizationRow, org) is None:
            msg = f"there is no organization {org}; `gramfuse-server org create {org}` creates it"
            raise NotFoundError(msg)
        chosen: Role = "operator" if operator else cast("Role", role)
        row, token = tokens.issue(
            session, audit_log.SHELL, role=chosen, organization=org, days=days, now=system_clock()
        )
        told = {**_told(row, system_clock()), "token": token}
    printing.show(told, lambda _: typer.echo(token))
    whose = "the operator" if org is None else org
    printing.note(f"This token of {whose} ({chosen}, {days} days) is shown once, and kept nowhere.")


@token_commands.command("list")
def list_tokens() -> None:
    """List all tokens, without their secrets, and which of them still open anything.

    Examples: gramfuse-server token list · gramfuse-server token list --format json
    """
    with schema.opened(load_settings().database_url) as database, reading(database) as session:
        now = system_clock()
        found = [
            _told(row, now) for row in session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.id))
        ]
    rows = [
        (
            one["id"],
            one["organization"] or "",
            one["role"],
            one["state"],
            _day(one["created_at"]),
            _day(one["expires_at"]),
        )
        for one in found
    ]
    printing.show(found, printing.table(("token", "organization", "role", "state", "created", "expires"), rows))


@token_commands.command("revoke")
def revoke_token(
    token: Annotated[str, typer.Argument(help="Its id, the part after gf_; the whole token does too.")],
) -> None:
    """Revoke a token. Twice is the same as once.

    Example: gramfuse-server token revoke 0123456789abcdef
    """
    identifier = token_id(token)
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        row = session.get(TokenRow, identifier, with_for_update=True)
        if row is None:
            msg = f"there is no token {identifier}; `gramfuse-server token list` shows the ids"
            raise NotFoundError(msg)
        tokens.end(session, audit_log.SHELL, row, system_clock())
        told = _told(row, system_clock())
    printing.show(told, lambda _: typer.echo(f"{identifier} is revoked"))


@organization_commands.command("create")
def create_organizations(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Lower-case letters, digits, hyphens.")],
) -> None:
    """Create organizations: all of them, or, where a name is not one, none. Twice is the same as once.

    Example: gramfuse-server org create acme globex initech
    """
    for name in names:
        if re.fullmatch(SLUG_PATTERN, name) is None:
            msg = f"{name!r} cannot be the name of an organization; such a name is {IN_WORDS[SLUG_PATTERN]}"
            raise RequestMalformedError(msg)
    made = []
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        for name in names:
            new = insert_if_absent(session, OrganizationRow, {"name": name, "created_at": system_clock()})
            made.append({"name": name, "new": bool(new)})
            if new:
                audit_log.append_for(
                    session, audit_log.SHELL, at=system_clock(), action="organization.create", subject=name
                )
    printing.show(made, lambda _: typer.echo("\n".join(names)))
    known = [str(one["name"]) for one in made if not one["new"]]
    if known:
        printing.note(f"there already: {', '.join(known)}")


@organization_commands.command("list")
def list_organizations() -> None:
    """List the organizations, and how many tokens of each open something.

    Examples: gramfuse-server org list · gramfuse-server org list --format json
    """
    with schema.opened(load_settings().database_url) as database, reading(database) as session:
        now = system_clock()
        valid = Counter(token.organization for token in session.scalars(select(TokenRow)) if is_valid(token, now))
        found = [
            {"name": row.name, "created_at": row.created_at.isoformat(), "valid_tokens": valid[row.name]}
            for row in session.scalars(select(OrganizationRow).order_by(OrganizationRow.name))
        ]
    rows = [(str(one["name"]), _day(str(one["created_at"])), str(one["valid_tokens"])) for one in found]
    printing.show(found, printing.table(("organization", "created", "valid tokens"), rows, right=(2,)))


def _told(row: TokenRow, now: datetime) -> Mapping[str, Any]:
    return {**tokens.token_document(row).model_dump(mode="json"), "state": token_state(row, now)}


def _day(moment: str | None) -> str:
    return "never" if moment is None else moment[:10]
