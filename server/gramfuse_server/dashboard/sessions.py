"""Who has signed in to the dashboard: a token becomes a session, and a session lives no longer than it."""

import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, authenticate, caller_of, is_valid
from gramfuse_server.tables import DashboardSessionRow, TokenRow
from gramfuse_shared.digest import sha256_hex

LIFETIME: Final = timedelta(hours=8)
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who has signed in. `csrf` stands in every form of the page and is derived from the cookie's secret."""

    caller: Caller
    csrf: str


def sign_in(session: Session, token: str, now: datetime) -> str:
    """Open a session for a token; return the cookie's secret, which is not stored.

    Raises:
        UnauthenticatedError: the token is unknown, expired or revoked.
    """
    caller = authenticate(session, f"Bearer {token}", now=now)
    secret = secrets.token_hex(_SECRET_BYTES)
    session.execute(delete(DashboardSessionRow).where(DashboardSessionRow.expires_at <= now))
    session.add(
        DashboardSessionRow(
            secret_sha256=sha256_hex(secret.encode()), token=caller.token, created_at=now, expires_at=now + LIFETIME
        )
    )
    session.flush()
    audit_log.append_for(session, caller, at=now, action="dashboard.sign-in", subject="dashboard")
    return secret


def find_visitor(session: Session, secret: str | None, now: datetime) -> Visitor | None:
    """Return who holds a cookie, None where nobody does any more."""
    row = session.get(DashboardSessionRow, sha256_hex(secret.encode())) if secret else None
    if row is None or secret is None or row.expires_at <= now:
        return None
    token = session.get_one(TokenRow, row.token)
    if not is_valid(token, now):
        return None
    return Visitor(caller=caller_of(token), csrf=_csrf(secret))


def sign_out(session: Session, secret: str) -> None:
    """Close a session."""
    session.execute(delete(DashboardSessionRow).where(DashboardSessionRow.secret_sha256 == sha256_hex(secret.encode())))


def is_same(sent: str, expected: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(sent.encode(), expected.encode())


def new_secret() -> str:
    """Return a secret for a form before anybody has signed in."""
    return secrets.token_hex(_SECRET_BYTES)


def _csrf(secret: str) -> str:
    return sha256_hex(f"csrf:{secret}".encode())
