"""Is the process alive, is it ready, which server is this, who am I."""

import socket
from typing import Any

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from gramfuse_server import schema
from gramfuse_server.api.context import CallerOf, Services, ServicesOf, declares, declares_publicly
from gramfuse_shared.contract.http_api import Health, ServerInfo, WhoAmI
from gramfuse_shared.version import __version__

router = APIRouter(tags=["server"])

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "A part does not answer"}}


@router.get("/healthz", responses=declares_publicly())
async def healthz() -> Health:
    """The process answers. Asks nothing of anything else, so it is always fast."""
    return Health(status="ok")


@router.get("/readyz", responses=declares_publicly() | _NOT_READY)
async def readyz(response: Response, services: ServicesOf) -> Health:
    """The database answers, its schema is this version's, and the blob store takes, gives and deletes a blob."""
    checks = await run_in_threadpool(_checks, services)
    ready = all(state == "ok" for state in checks.values())
    response.status_code = 200 if ready else 503
    return Health(status="ok" if ready else "unavailable", checks=checks)


@router.get("/v1/server", responses=declares_publicly())
async def server(services: ServicesOf) -> ServerInfo:
    """What anybody may know; clients pin the receipt key on first use, and follow its hand-overs."""
    keys = services.receipt_keys
    return ServerInfo(
        version=__version__,
        receipt_key=keys.present,
        handovers=keys.handovers,
        direct_transfers=services.direct is not None,
    )


@router.get("/v1/whoami", responses=declares())
def whoami(caller: CallerOf) -> WhoAmI:
    """The caller's token, without its secret."""
    return WhoAmI(organization=caller.organization, role=caller.role, token=caller.token, expires_at=caller.expires_at)


def _checks(services: Services) -> dict[str, str]:
    checks: dict[str, str] = {}
    try:
        current, head = schema.current(services.database), schema.head()
        checks["database"] = "ok"
        checks["migrations"] = "ok" if current == head else f"at {current}, this version needs {head}"
    except SQLAlchemyError as error:
        checks["database"] = type(error).__name__  # the message may name hosts and users
    try:
        services.blobs.probe(socket.gethostname())
        checks["blobs"] = "ok"
    except OSError:
        checks["blobs"] = "cannot be written and read"
    return checks
