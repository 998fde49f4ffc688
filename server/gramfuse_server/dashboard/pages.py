"""The dashboard's pages: sign-in, overview, sign-out. No inline script, nothing from elsewhere."""

from typing import Any, Final
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gramfuse_server.clock import Clock
from gramfuse_server.dashboard import formats
from gramfuse_server.dashboard.overview import read_dashboard
from gramfuse_server.dashboard.sessions import Visitor, find_visitor, is_same, new_secret, sign_in, sign_out
from gramfuse_server.database import Database, reading, transaction
from gramfuse_server.settings import Settings
from gramfuse_shared.errors import GramfuseError, RequestMalformedError, RoleRequiredError, TooLargeError
from gramfuse_shared.version import __version__

SESSION_COOKIE: Final = "gramfuse_session"
FORM_COOKIE: Final = "gramfuse_form"
MAX_FORM_BYTES: Final = 4096
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NO_STORE: Final = {"Cache-Control": "no-store"}


def create_dashboard(database: Database, settings: Settings, clock: Clock) -> Starlette:
    """Build the dashboard, to be mounted somewhere; its links are relative."""
    pages = _Pages(database, settings, clock)
    routes = [
        Route("/", pages.show),
        Route("/overview", pages.refresh),
        Route("/sign-in", pages.ask, methods=["GET"]),
        Route("/sign-in", pages.sign_in, methods=["POST"]),
        Route("/sign-out", pages.sign_out, methods=["POST"]),
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


class SecurityHeaders:
    """Puts the content policy and its companions on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with the headers."""

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, send_secured)


class _Pages:
    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._templates = Environment(
            loader=PackageLoader("gramfuse_server", "dashboard/templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            size=formats.size,
            share=formats.share,
            duration=formats.duration,
            since=formats.since,
            moment=formats.moment,
        )
        self._templates.globals["version"] = __version__

    def show(self, request: Request) -> Response:
        visitor = self._visitor(request)
        if visitor is None:
            return RedirectResponse("sign-in", status_code=303, headers=_NO_STORE)
        return self._render("dashboard.html", visitor=visitor, dashboard=self._read())

    def refresh(self, request: Request) -> Response:
        if self._visitor(request) is None:
            # htmx follows this; the page then shows the sign-in form
            return Response(status_code=204, headers={"HX-Redirect": "sign-in"} | _NO_STORE)
        return self._render("overview.html", dashboard=self._read())

    def explain(self, _: Request, error: Exception) -> Response:
        """Show an error of ours as a page."""
        known = error if isinstance(error, GramfuseError) else GramfuseError("the page cannot be shown")
        return self._render("problem.html", status=known.status, title=known.title, message=known.message)

    def ask(self, request: Request) -> Response:
        return self._form(request, message=None, status=200)

    async def sign_in(self, request: Request) -> Response:
        form = await _read_form(request)
        return await run_in_threadpool(self._sign_in, request, form)

    async def sign_out(self, request: Request) -> Response:
        form = await _read_form(request)
        return await run_in_threadpool(self._sign_out, request, form)

    def _sign_in(self, request: Request, form: dict[str, str]) -> Response:
        expected = request.cookies.get(FORM_COOKIE, "")
        if not expected or not is_same(form.get("csrf", ""), expected):
            return self._form(request, message="This form has expired. Please try again.", status=403)
        try:
            with transaction(self._database) as session:
                secret = sign_in(session, form.get("token", "").strip(), self._clock())
        except RoleRequiredError:
            return self._form(request, message="That token is valid, but not an operator's.", status=403)
        except GramfuseError:
            return self._form(request, message="That token is unknown, expired or revoked.", status=401)
        answer = RedirectResponse("./", status_code=303, headers=_NO_STORE)
        _set_cookie(request, answer, SESSION_COOKIE, secret)
        _delete_cookie(request, answer, FORM_COOKIE)
        return answer

    def _sign_out(self, request: Request, form: dict[str, str]) -> Response:
        secret = request.cookies.get(SESSION_COOKIE, "")
        visitor = self._visitor(request)
        if visitor is not None and not is_same(form.get("csrf", ""), visitor.csrf):
            msg = "the form is not this session's; reload the page and try again"
            raise RoleRequiredError(msg)
        if visitor is not None:
            with transaction(self._database) as session:
                sign_out(session, secret)
        answer = RedirectResponse("sign-in", status_code=303, headers=_NO_STORE)
        _delete_cookie(request, answer, SESSION_COOKIE)
        return answer

    def _visitor(self, request: Request) -> Visitor | None:
        with reading(self._database) as session:
            return find_visitor(session, request.cookies.get(SESSION_COOKIE), self._clock())

    def _read(self) -> Any:  # noqa: ANN401 - the templates' own
        with reading(self._database) as session:
            return read_dashboard(session, self._settings, self._clock())

    def _form(self, request: Request, *, message: str | None, status: int) -> Response:
        csrf = new_secret()
        answer = self._render("sign_in.html", status=status, csrf=csrf, message=message)
        _set_cookie(request, answer, FORM_COOKIE, csrf)
        return answer

    def _render(self, template: str, *, status: int = 200, **values: object) -> Response:
        content = self._templates.get_template(template).render(**values)
        return HTMLResponse(content, status_code=status, headers=_NO_STORE)


async def _read_form(request: Request) -> dict[str, str]:
    """Read a small urlencoded form.

    Raises:
        TooLargeError, RequestMalformedError: it is neither.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            msg = f"the form is larger than {MAX_FORM_BYTES} bytes"
            raise TooLargeError(msg)
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=8, strict_parsing=bool(body))
    except ValueError as error:
        msg = "the form is not urlencoded"
        raise RequestMalformedError(msg) from error
    return {name: values[-1] for name, values in fields.items()}


def _set_cookie(request: Request, answer: Response, name: str, value: str) -> None:
    answer.set_cookie(
        name,
        value,
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _delete_cookie(request: Request, answer: Response, name: str) -> None:
    answer.delete_cookie(
        name, path=_path(request), secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )


def _path(request: Request) -> str:
    return str(request.scope.get("root_path") or "/")
