"""Tokens as they are seen, created and revoked, by the API, the dashboard or a command; the audit log has each act."""

from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, issue_token
from gramfuse_server.tables import OrganizationRow, TokenRow
from gramfuse_shared.contract.http_api import Role, TokenCreate, TokenCreated, TokenInfo
from gramfuse_shared.errors import NotFoundError, RequestMalformedError, RoleRequiredError


def create(session: Session, caller: Caller, wanted: TokenCreate, now: datetime) -> TokenCreated:
    """Create a token for an operator; its secret is in what is returned and nowhere else.

    Raises:
        RoleRequiredError: the caller is no operator.
        RequestMalformedError: role and organization do not go together.
        NotFoundError: there is no such organization.
    """
    caller.require_operator()
    if (wanted.role == "operator") != (wanted.organization is None):
        msg = "an operator's token belongs to no organization, every other token to one"
        raise RequestMalformedError(msg)
    if wanted.organization is not None and session.get(OrganizationRow, wanted.organization) is None:
        msg = f"there is no organization {wanted.organization}; create it first"
        raise NotFoundError(msg)
    row, token = issue(session, caller, role=wanted.role, organization=wanted.organization, days=wanted.days, now=now)
    return TokenCreated(**token_document(row).model_dump(), token=token)


def revoke(session: Session, caller: Caller, token: str, now: datetime) -> TokenInfo:
    """Revoke a token: an operator any, a coordinator those of its organization. Twice is the same as once.

    Raises:
        NotFoundError: there is none that the caller may see.
        RoleRequiredError: the caller is a participant.
    """
    row = find_revocable(session, caller, token, lock=True)
    end(session, caller, row, now)
    return token_document(row)


def issue(
    session: Session, actor: audit_log.Actor, *, role: Role, organization: str | None, days: int, now: datetime
) -> tuple[TokenRow, str]:
    """Issue a token, whoever may; its secret is in what is returned and nowhere else."""
    lifetime = timedelta(days=days)
    row, token = issue_token(session, role=role, organization=organization, now=now, lifetime=lifetime)
    details = {"role": role, "organization": organization, "days": days}
    audit_log.append_for(session, actor, at=now, action="token.create", subject=row.id, details=details)
    return row, token


def end(session: Session, actor: audit_log.Actor, row: TokenRow, now: datetime) -> None:
    """Revoke a token, whoever may, unless it is revoked; the row is locked."""
    if row.revoked_at is None:
        row.revoked_at = now
        audit_log.append_for(session, actor, at=now, action="token.revoke", subject=row.id)


def visible(caller: Caller) -> Select[TokenRow]:
    """Return the tokens that a caller may see: an operator all, others those of their organization."""
    query = select(TokenRow)
    return query if caller.role == "operator" else query.where(TokenRow.organization == caller.organization)


def find_revocable(session: Session, caller: Caller, token: str, *, lock: bool = False) -> TokenRow:
    """Return a token that the caller may revoke; raises as `revoke`."""
    row = session.get(TokenRow, token, with_for_update=lock or None)
    if row is None or (caller.role != "operator" and row.organization != caller.organization):
        msg = f"there is no token {token} that this caller may see"
        raise NotFoundError(msg)
    if caller.role == "participant":
        msg = "a coordinator's or an operator's token is needed to revoke tokens"
        raise RoleRequiredError(msg)
    return row


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
