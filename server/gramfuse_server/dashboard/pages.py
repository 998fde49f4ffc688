"""The dashboard's addresses, and the way from one to its page. No inline script, nothing from elsewhere."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.audience import Audience, Send, View
from gramfuse_server.dashboard.browser import SecurityHeaders
from gramfuse_server.dashboard.entrance import Entrance
from gramfuse_server.dashboard.forms import Act, Form, Forms, Led, Shown
from gramfuse_server.dashboard.members.audience import MEMBERS
from gramfuse_server.dashboard.operators.audience import OPERATORS
from gramfuse_server.dashboard.rendering import Renderer
from gramfuse_server.dashboard.sources import Sources
from gramfuse_shared.errors import GramfuseError, NotFoundError

_AUDIENCES: Final = (OPERATORS, MEMBERS)

T = TypeVar("T")


def create_dashboard(sources: Sources) -> Starlette:
    """Build the dashboard, to be mounted somewhere; its links are relative."""
    renderer = Renderer(sources.clock)
    entrance = Entrance(sources.database, sources.clock, renderer)
    pages = _Pages(sources, renderer, entrance)
    forms = Forms(sources, renderer, entrance)
    routes = [
        *(Route(at, pages.show(at), methods=["GET"]) for at in _addresses(each.pages for each in _AUDIENCES)),
        *(Route(at, pages.send(at), methods=["GET"]) for at in _addresses(each.answers for each in _AUDIENCES)),
        *(Route(at, forms.take(_act_at(at)), methods=["POST"]) for at in _addresses(each.acts for each in _AUDIENCES)),
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

    def show(self, at: str) -> Callable[[Request], Response]:
        """Return what answers with a page to whoever has signed in."""

        def answer(request: Request) -> Response:
            visitor = self.entrance.visitor(request)
            if visitor is None:
                return self.entrance.turn_away(request)
            view: View = _theirs(_audience_of(visitor.caller).pages, at)
            values = view.read(self.sources, request, visitor.caller)
            return self.renderer.render(request, view.template, visitor=visitor, **values)

        return answer

    def send(self, at: str) -> Callable[[Request], Response]:
        """Return what answers with something else than a page."""

        def answer(request: Request) -> Response:
            visitor = self.entrance.visitor(request)
            if visitor is None:
                return self.entrance.turn_away(request)
            send: Send = _theirs(_audience_of(visitor.caller).answers, at)
            return send(self.sources, request, visitor.caller)

        return answer

    def explain(self, request: Request, error: Exception) -> Response:
        """Show an error of ours as a page."""
        known = error if isinstance(error, GramfuseError) else GramfuseError("the page cannot be shown")
        return self.renderer.render(
            request, "problem.html", status=known.status, title=known.title, message=known.message
        )


def _act_at(at: str) -> Act:
    def act(sources: Sources, form: Form) -> Shown | Led:
        theirs: Act = _theirs(_audience_of(form.caller).acts, at)
        return theirs(sources, form)

    return act


def _audience_of(caller: Caller) -> Audience:
    return OPERATORS if caller.role == "operator" else MEMBERS


def _addresses(tables: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(at for table in tables for at in table))


def _theirs(table: Mapping[str, T], at: str) -> T:
    found = table.get(at)
    if found is None:
        msg = "there is no such page for this token"
        raise NotFoundError(msg)
    return found
