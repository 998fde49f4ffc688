"""The way from a form to the act that it asks for: whoever sent it has signed in, by this session's own page."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gramfuse_server.auth import Caller
from gramfuse_server.dashboard.browser import NO_STORE, Bounds, read_form, root_of
from gramfuse_server.dashboard.entrance import Entrance, require_own_form
from gramfuse_server.dashboard.rendering import Renderer
from gramfuse_server.dashboard.sources import Sources


@dataclass(frozen=True, slots=True)
class Form:
    """A form that was sent, by whom, and to which address."""

    request: Request
    caller: Caller
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """An act that is answered by a page."""

    template: str
    status: int
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Led:
    """An act that leads to a page, by its address within the dashboard."""

    to: str


Act = Callable[[Sources, Form], Shown | Led]
"""Does what a form asks for; raises GramfuseError, which is shown as a page."""

BOUNDS = Bounds(byte_count=64 * 1024, fields=1_100)
"""Of a form of whoever has signed in: that of a job names each member of a cohort."""


@dataclass(frozen=True, slots=True)
class Forms:
    """Takes forms."""

    sources: Sources
    renderer: Renderer
    entrance: Entrance

    def take(self, act: Act) -> Callable[[Request], Awaitable[Response]]:
        """Return what answers a form by an act."""

        async def answer(request: Request) -> Response:
            visitor = await run_in_threadpool(self.entrance.visitor, request)
            if visitor is None:
                return self.entrance.turn_away(request)
            fields = await read_form(request, BOUNDS)
            require_own_form(fields, visitor)
            done = await run_in_threadpool(act, self.sources, Form(request, visitor.caller, fields))
            if isinstance(done, Led):
                return RedirectResponse(f"{root_of(request)}{done.to}", status_code=303, headers=NO_STORE)
            return await run_in_threadpool(
                self.renderer.render, request, done.template, status=done.status, visitor=visitor, **done.values
            )

        return answer
