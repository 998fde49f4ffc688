"""The dashboard's addresses, and the way from one to its page. No inline script, nothing from elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gramfuse_server.dashboard.audit import read_audit
from gramfuse_server.dashboard.browser import SecurityHeaders
from gramfuse_server.dashboard.entrance import Entrance
from gramfuse_server.dashboard.merges import read_job, read_model
from gramfuse_server.dashboard.overview import read_overview
from gramfuse_server.dashboard.projects import read_project, read_projects
from gramfuse_server.dashboard.rendering import Renderer
from gramfuse_server.dashboard.sources import Sources
from gramfuse_server.dashboard.token_forms import TokenForms, read_token, read_tokens
from gramfuse_shared.errors import GramfuseError

Read = Callable[[Sources, Request], Mapping[str, Any]]
"""Reads what a page shows."""


def create_dashboard(sources: Sources) -> Starlette:
    """Build the dashboard, to be mounted somewhere; its links are relative."""
    renderer = Renderer(sources.clock)
    entrance = Entrance(sources.database, sources.clock, renderer)
    pages = _Pages(sources, renderer, entrance)
    forms = TokenForms(sources, renderer, entrance)
    routes = [
        Route("/", pages.show("overview.html", read_overview)),
        Route("/projects", pages.show("projects.html", read_projects)),
        Route("/projects/{project}", pages.show("project.html", read_project)),
        Route("/jobs/{project}/{job}", pages.show("job.html", read_job)),
        Route("/models/{project}/{job}", pages.show("model.html", read_model)),
        Route("/audit", pages.show("audit.html", read_audit)),
        Route("/tokens", pages.show("tokens.html", read_tokens), methods=["GET"]),
        Route("/tokens", forms.create, methods=["POST"]),
        Route("/tokens/{token}/revoke", pages.show("token_revoke.html", read_token), methods=["GET"]),
        Route("/tokens/{token}/revoke", forms.revoke, methods=["POST"]),
        Route("/sign-in", entrance.ask, methods=["GET"]),
        Route("/sign-in", entrance.sign_in, methods=["POST"]),
        Route("/sign-out", entrance.sign_out, methods=["POST"]),
        Mount("/static", StaticFiles(packages=[("gramfuse_server", "dashboard/static")])),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={GramfuseError: pages.explain},
    )


def front_door(_: Request) -> Response:
    """Lead who types the bare address into a browser to the dashboard."""
    return RedirectResponse("dashboard/", status_code=307)


@dataclass(frozen=True, slots=True)
class _Pages:
    sources: Sources
    renderer: Renderer
    entrance: Entrance

    def show(self, template: str, read: Read) -> Callable[[Request], Response]:
        """Return what answers with a page to whoever has signed in."""

        def answer(request: Request) -> Response:
            visitor = self.entrance.visitor(request)
            if visitor is None:
                return self.entrance.turn_away(request)
            return self.renderer.render(request, template, visitor=visitor, **read(self.sources, request))

        return answer

    def explain(self, request: Request, error: Exception) -> Response:
        """Show an error of ours as a page."""
        known = error if isinstance(error, GramfuseError) else GramfuseError("the page cannot be shown")
        return self.renderer.render(
            request, "problem.html", status=known.status, title=known.title, message=known.message
        )
