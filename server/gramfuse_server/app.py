"""The API process: everything that it needs is built and wired here. It never imports torch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from anyio import to_thread
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from gramfuse_server.api import (
    admin,
    admin_projects,
    base,
    contributions,
    health,
    jobs,
    models,
    organizations,
    projects,
    requests,
    tokens,
)
from gramfuse_server.api.admission import Admission
from gramfuse_server.api.context import Services
from gramfuse_server.api.openapi import describe
from gramfuse_server.api.problems import ProblemDocuments, install_handlers
from gramfuse_server.blobs import open_blobs
from gramfuse_server.clock import Clock, system_clock
from gramfuse_server.dashboard.pages import create_dashboard, front_door
from gramfuse_server.dashboard.sources import Sources
from gramfuse_server.database import open_database
from gramfuse_server.direct import open_direct
from gramfuse_server.intake.parts import PartBuffers
from gramfuse_server.jobs import JobQueue
from gramfuse_server.logs import RequestLog
from gramfuse_server.metrics.disks import disks_of_api
from gramfuse_server.metrics.requests import RequestMetrics
from gramfuse_server.metrics.serving import new_registry
from gramfuse_server.metrics.state import StateCollector
from gramfuse_server.readiness import Readiness
from gramfuse_server.receipt_key import load_public_keys
from gramfuse_server.settings import Settings
from gramfuse_server.tracing import stop_tracing
from gramfuse_shared import limits
from gramfuse_shared.version import __version__

ROUTERS: Final = (
    health.router,
    organizations.router,
    tokens.router,
    projects.router,
    base.router,
    contributions.router,
    jobs.router,
    models.router,
    requests.router,
    admin.router,
    admin_projects.router,
)


class Api(FastAPI):
    """FastAPI, with the layers that must lie outside of its own ones: its body limit answers in plain text."""

    def build_middleware_stack(self) -> ASGIApp:
        """Wrap what FastAPI builds."""
        services: Services = self.state.services
        admitted = Admission(super().build_middleware_stack(), services)
        return RequestLog(ProblemDocuments(admitted), services.metrics)


def create_app(settings: Settings, *, clock: Clock = system_clock, traced: bool = False) -> FastAPI:
    """Build the API. The database must be migrated and the receipt key created: `gramfuse-server init`.

    Args:
        settings: where everything lies.
        clock: the present.
        traced: whether `start_tracing` was asked to.

    Raises:
        ConfigurationError: a setting does not work.
    """
    receipt_keys = load_public_keys(settings.receipt_key)  # before the blobs' folder is made
    database = open_database(settings.database_url)
    blobs = open_blobs(settings.blobs)
    direct = open_direct(settings, blobs)
    registry = new_registry()
    registry.register(StateCollector(database, clock, lease=settings.worker_lease))
    registry.register(disks_of_api(settings))
    services = Services(
        settings=settings,
        database=database,
        blobs=blobs,
        jobs=JobQueue(database, traced=traced),
        clock=clock,
        receipt_keys=receipt_keys,
        part_buffers=PartBuffers(settings.concurrent_parts, settings.parts_per_organization),
        metrics=RequestMetrics(registry),
        direct=direct,
        readiness=Readiness(database, blobs),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # of forty threads, as by default, each waits for the others' turns, and the event loop for everybody's
        to_thread.current_default_thread_limiter().total_tokens = settings.request_threads
        yield
        database.close()
        if traced:
            await run_in_threadpool(stop_tracing)

    app = Api(
        title="gramfuse",
        version=__version__,
        summary="Several organizations, one language model: merge weights and statistics, never data.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        max_body_size=limits.MAX_REQUEST_BYTES,
        telemetry=_telemetry(traced=traced),
    )
    app.state.services = services
    app.state.registry = registry
    for router in ROUTERS:
        # as they are: including a router has the first request build each of its routes again, 0.2 s of work
        app.router.routes.extend(router.routes)
    sources = Sources(
        database=database,
        settings=settings,
        blobs=services.blobs,
        queue=services.jobs,
        clock=clock,
        send_file=partial(models.send_model_file, services),
    )
    app.add_route("/", front_door, include_in_schema=False)
    app.mount("/dashboard", create_dashboard(sources))
    install_handlers(app)
    describe(app)
    return app


def _telemetry(*, traced: bool) -> TelemetryConfig:
    """Say what FastAPI may tell OpenTelemetry: by itself it tells everything to whoever the environment names.

    Its logs hold messages of exceptions and bodies that were refused; metrics are `metrics.requests`' business.
    """
    return {"tracing": traced, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
