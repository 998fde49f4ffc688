"""Is the process alive, is it ready, which server is this, who am I."""

from typing import Any

from fastapi import APIRouter, Response

from gramfuse_server import heartbeats
from gramfuse_server.api.context import CallerOf, ServicesOf, declares, declares_publicly
from gramfuse_server.database import reading
from gramfuse_shared.contract.http_api import Health, ServerInfo, WhoAmI, Workers
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
    checks = await services.readiness.checks()
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


@router.get("/v1/workers", responses=declares())
def workers(services: ServicesOf, _caller: CallerOf) -> Workers:
    """Whether anybody checks uploads and merges at the moment; who, operators alone are told."""
    with reading(services.database) as session:
        alive = heartbeats.is_any_alive(session, services.clock(), services.settings.worker_lease)
    return Workers(alive=alive)


@router.get("/v1/whoami", responses=declares())
def whoami(caller: CallerOf) -> WhoAmI:
    """The caller's token, without its secret."""
    return WhoAmI(organization=caller.organization, role=caller.role, token=caller.token, expires_at=caller.expires_at)
