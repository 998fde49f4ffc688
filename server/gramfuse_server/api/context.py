"""What every endpoint is given: the services, the caller, and which part of a list was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session
from starlette.types import Scope

from gramfuse_server import audit_log
from gramfuse_server.api.problems import problem_responses
from gramfuse_server.auth import Caller, authenticate
from gramfuse_server.blobs import Blobs
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, reading
from gramfuse_server.direct import DirectTransfers
from gramfuse_server.intake.parts import PartBuffers
from gramfuse_server.jobs import JobQueue
from gramfuse_server.metrics.requests import RequestMetrics
from gramfuse_server.readiness import Readiness
from gramfuse_server.receipt_key import ReceiptKeys
from gramfuse_server.settings import Settings
from gramfuse_shared.errors import (
    EncodingUnsupportedError,
    GramfuseError,
    NotFoundError,
    RequestMalformedError,
    RoleRequiredError,
    StorageFullError,
    TooLargeError,
    TooManyRequestsError,
    TooSlowError,
    UnauthenticatedError,
    UnavailableError,
)
from gramfuse_shared.identifiers import Digest, FileName, JobId, OrganizationName, ProjectId

BEARER: Final = HTTPBearer(
    auto_error=False, scheme_name="token", bearerFormat="gf_<id>_<secret>", description="A token of this server."
)

TOKEN_REQUIRED: Final[list[dict[str, list[str]]]] = [{BEARER.scheme_name: []}]
"""What an operation declares that finds its caller by itself, before it reads the body."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a request may need, built once in `app`."""

    settings: Settings
    database: Database
    blobs: Blobs
    jobs: JobQueue
    clock: Clock
    receipt_keys: ReceiptKeys
    """The public half, base64."""
    part_buffers: PartBuffers
    metrics: RequestMetrics
    direct: DirectTransfers | None
    readiness: Readiness


async def services(request: Request) -> Services:
    """Return the app's services. Asynchronous, because FastAPI sends every other dependency through a thread."""
    found: Services = request.app.state.services
    return found


ServicesOf = Annotated[Services, Depends(services)]


def authenticated(services: Services, authorization: str | None) -> Caller:
    """Find the caller; touches the database, so call it in a thread."""
    with reading(services.database) as session:
        return authenticate(session, authorization, now=services.clock())


def keep_caller(scope: Scope, caller: Caller) -> None:
    """Have a request carry its caller."""
    scope.setdefault("state", {})["caller"] = caller


def keep_refusal(scope: Scope, error: GramfuseError) -> None:
    """Have a request carry the reason why it has no caller."""
    scope.setdefault("state", {})["refusal"] = error


def caller_of(request: Request) -> Caller:
    """Return the caller of a request, whom `admission` found before a byte of the body was read.

    Raises:
        UnauthenticatedError, TooManyRequestsError, EncodingUnsupportedError: why it let nobody in.
    """
    refusal: GramfuseError | None = getattr(request.state, "refusal", None)
    if refusal is not None:
        raise refusal
    found: Caller = request.state.caller
    return found


async def caller(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]) -> Caller:
    """Return the caller, and declare that an operation needs one."""
    return caller_of(request)


CallerOf = Annotated[Caller, Depends(caller)]


async def operator(caller: CallerOf) -> Caller:
    """Return the caller, who is an operator; raises RoleRequiredError."""
    caller.require_operator()
    return caller


OperatorOf = Annotated[Caller, Depends(operator)]

ProjectPath = Annotated[ProjectId, Path()]
OrganizationPath = Annotated[OrganizationName, Path()]
ContributionPath = Annotated[Digest, Path(description="the manifest's digest")]
FilePath = Annotated[FileName, Path()]
JobPath = Annotated[JobId, Path()]


def audit(
    session: Session,
    services: Services,
    caller: Caller,
    action: str,
    subject: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append what the caller does to the audit log; last in the transaction."""
    audit_log.append_for(session, caller, at=services.clock(), action=action, subject=subject, details=details)


def declares(*errors: type[GramfuseError]) -> dict[int | str, dict[str, Any]]:
    """The problem responses of an operation that needs a token: the given ones and those of every such operation."""
    return problem_responses(
        UnauthenticatedError,
        RoleRequiredError,
        NotFoundError,
        TooLargeError,
        RequestMalformedError,
        EncodingUnsupportedError,
        TooManyRequestsError,
        TooSlowError,
        *errors,
        GramfuseError,
        UnavailableError,
        StorageFullError,
    )


def declares_publicly(*errors: type[GramfuseError]) -> dict[int | str, dict[str, Any]]:
    """The problem responses of an operation that needs no token."""
    return problem_responses(TooLargeError, RequestMalformedError, *errors, GramfuseError)
