"""Who calls, and what a caller may see or do. What a caller may not see does not exist for it (404, never 403)."""

import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, cast

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from gramfuse_server.tables import ParticipantRow, ProjectRow, TokenRow
from gramfuse_shared.contract.http_api import Role
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import (
    NotFoundError,
    PolicyNotAcceptedError,
    RequestMalformedError,
    RoleRequiredError,
    StateError,
    UnauthenticatedError,
)

TokenState = Literal["valid", "expired", "revoked"]

_TOKEN: Final = re.compile(r"gf_([0-9a-f]{16})_([0-9a-f]{64})")
_TOKEN_ID: Final = re.compile(r"(?:gf_)?([0-9a-f]{16})(?:_\S*)?")
_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 8
_NO_SECRET: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated token. An operator's belongs to no organization."""

    token: str
    role: Role
    organization: str | None
    expires_at: datetime | None

    def require_operator(self) -> None:
        """Raises RoleRequiredError unless the caller is an operator."""
        if self.role != "operator":
            msg = "an operator's token is needed; the server's administrator creates one"
            raise RoleRequiredError(msg)

    def require_organization(self) -> str:
        """Return the caller's organization; raises RoleRequiredError for an operator, who has none."""
        if self.organization is None:
            msg = "an organization's token is needed; an operator takes no part in projects"
            raise RoleRequiredError(msg)
        return self.organization

    def coordinates(self, organization: str) -> bool:
        """Tell whether the caller coordinates for this organization."""
        return self.role == "coordinator" and self.organization == organization

    def require_coordinator(self, organization: str) -> None:
        """Raises RoleRequiredError unless the caller coordinates for this organization."""
        if not self.coordinates(organization):
            msg = f"a coordinator's token of {organization} is needed"
            raise RoleRequiredError(msg)


def issue_token(
    session: Session, *, role: Role, organization: str | None, now: datetime, lifetime: timedelta
) -> tuple[TokenRow, str]:
    """Create a token; return its row and the token itself, which is not stored and cannot be shown again."""
    identifier, secret = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES)
    row = TokenRow(
        id=identifier,
        secret_sha256=sha256_hex(secret.encode()),
        role=role,
        organization=organization,
        created_at=now,
        expires_at=now + lifetime,
        revoked_at=None,
    )
    session.add(row)
    session.flush()
    return row, f"gf_{identifier}_{secret}"


def token_id(text: str) -> str:
    """Return the id in a token, or in a part of one that begins with it: who knows of a leak has the whole token.

    Raises:
        RequestMalformedError: there is none; the text, which may be a secret, is not in the message.
    """
    match = _TOKEN_ID.fullmatch(text.strip())
    if match is None:
        msg = (
            "that is no token: its id is needed, the 16 characters after gf_, as `gramfuse-server token list` shows it"
        )
        raise RequestMalformedError(msg)
    return match[1]


def authenticate(session: Session, authorization: str | None, *, now: datetime) -> Caller:
    """Find the token of an `Authorization: Bearer gf_<id>_<secret>` field.

    Raises:
        UnauthenticatedError: no token, or one that is unknown, expired or revoked; which of these is not told.
    """
    scheme, _, credentials = (authorization or "").partition(" ")
    match = _TOKEN.fullmatch(credentials.strip()) if scheme.lower() == "bearer" else None
    if match is None:
        msg = (
            "a whole token is needed, as it was shown once: gf_<id>_<secret>; `gramfuse login URL` keeps it, programs "
            "send it as 'Authorization: Bearer gf_…'"
        )
        raise UnauthenticatedError(msg)
    identifier, secret = match.groups()
    row = session.get(TokenRow, identifier)
    # an unknown id takes as long as a wrong secret
    same = hmac.compare_digest(sha256_hex(secret.encode()), row.secret_sha256 if row else _NO_SECRET)
    if row is None or not same or not is_valid(row, now):
        msg = "the token is unknown, expired or revoked; the operator makes a new one, `gramfuse login URL` stores it"
        raise UnauthenticatedError(msg)
    return caller_of(row)


def token_state(row: TokenRow, now: datetime) -> TokenState:
    """Tell whether a token opens anything, and if not, why."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "valid"


def is_valid(row: TokenRow, now: datetime) -> bool:
    """Tell whether a token is neither expired nor revoked."""
    return token_state(row, now) == "valid"


def caller_of(row: TokenRow) -> Caller:
    """Return the caller that a token is."""
    return Caller(token=row.id, role=cast("Role", row.role), organization=row.organization, expires_at=row.expires_at)


def visible_projects(caller: Caller) -> Select[ProjectRow]:
    """Return the projects of which the caller's organization is a participant, without an order."""
    return (
        select(ProjectRow)
        .join(ParticipantRow, ParticipantRow.project == ProjectRow.id)
        .where(ParticipantRow.organization == caller.organization)
    )


def visible_project(session: Session, caller: Caller, project: str, *, lock: bool = False) -> ProjectRow:
    """Return a project of which the caller's organization is a participant; `lock` holds it until the commit.

    Raises:
        NotFoundError: there is none, or the caller may not know of it.
    """
    query = visible_projects(caller).where(ProjectRow.id == project)
    if lock:
        query = query.with_for_update(of=ProjectRow).execution_options(populate_existing=True)
    row = session.scalars(query).one_or_none()
    # who waited for the lock may have been removed meanwhile: the query saw the participants of before
    if row is None or (lock and session.get(ParticipantRow, (project, caller.organization)) is None):
        msg = f"there is no project {project} that this token may see; its coordinator invites organizations"
        raise NotFoundError(msg)
    return row


def changeable_project(session: Session, caller: Caller, project: str, *, lock: bool = True) -> ProjectRow:
    """Return a visible project in which something may be changed, held until the commit unless told otherwise.

    Raises:
        NotFoundError: see `visible_project`.
        StateError: it was deleted.
    """
    row = visible_project(session, caller, project, lock=lock)
    require_living(row)
    return row


def require_living(project: ProjectRow) -> None:
    """Require that a project was not deleted; raises StateError. Nothing in one that was changes any more."""
    if project.deleted_at is not None:
        msg = (
            f"{project.id} was deleted on {project.deleted_at:%Y-%m-%d %H:%M} UTC: it can be read, not changed, and "
            "its name stays taken; create another project"
        )
        raise StateError(msg, state="deleted")


def require_accepted_policy(session: Session, caller: Caller, project: ProjectRow) -> None:
    """Require that the caller's organization accepted the project's current policy.

    Raises:
        PolicyNotAcceptedError: it did not, or only an earlier version.
    """
    participant = session.get(ParticipantRow, (project.id, caller.organization))
    if participant is None or participant.accepted_version != project.policy_version:
        msg = (
            f"{caller.organization} has not accepted version {project.policy_version} of the policy of {project.id}; "
            f"read it and accept it with `gramfuse project join {project.id}`"
        )
        raise PolicyNotAcceptedError(msg, project=project.id, version=project.policy_version)
