"""Signing in and out."""

from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gramfuse_server.clock import Clock
from gramfuse_server.dashboard.browser import NO_STORE, delete_cookie, read_form, root_of, set_cookie
from gramfuse_server.dashboard.rendering import Renderer
from gramfuse_server.dashboard.sessions import Visitor, find_visitor, is_same, new_secret, sign_in, sign_out
from gramfuse_server.database import Database, reading, transaction
from gramfuse_shared.errors import GramfuseError, RoleRequiredError

SESSION_COOKIE: Final = "gramfuse_session"
FORM_COOKIE: Final = "gramfuse_form"


class Entrance:
    """Lets in who has a token, and tells who is in."""

    def __init__(self, database: Database, clock: Clock, renderer: Renderer) -> None:
        self._database = database
        self._clock = clock
        self._renderer = renderer

    def visitor(self, request: Request) -> Visitor | None:
        """Return who asks, None where nobody has signed in; touches the database."""
        with reading(self._database) as session:
            return find_visitor(session, request.cookies.get(SESSION_COOKIE), self._clock())

    def turn_away(self, request: Request) -> Response:
        """Lead to the sign-in form; htmx follows a header of its own, so that the whole page shows the form."""
        target = f"{root_of(request)}sign-in"
        if request.headers.get("hx-request") == "true":
            return Response(status_code=204, headers={"HX-Redirect": target} | NO_STORE)
        return RedirectResponse(target, status_code=303, headers=NO_STORE)

    def ask(self, request: Request) -> Response:
        """Show the sign-in form, and say why to who was signed in and is no more."""
        ended = SESSION_COOKIE in request.cookies and self.visitor(request) is None
        answer = self._form(
            request, message="Your session has ended. Please sign in again." if ended else None, status=200
        )
        if ended:
            delete_cookie(request, answer, SESSION_COOKIE)
        return answer

    async def sign_in(self, request: Request) -> Response:
        """Take the sign-in form."""
        form = await read_form(request)
        return await run_in_threadpool(self._sign_in, request, form)

    async def sign_out(self, request: Request) -> Response:
        """Take the sign-out form."""
        form = await read_form(request)
        return await run_in_threadpool(self._sign_out, request, form)

    def _sign_in(self, request: Request, form: dict[str, str]) -> Response:
        expected = request.cookies.get(FORM_COOKIE, "")
        if not expected or not is_same(form.get("csrf", ""), expected):
            return self._form(request, message="This form has expired. Please try again.", status=403)
        try:
            with transaction(self._database) as session:
                secret = sign_in(session, form.get("token", "").strip(), self._clock())
        except GramfuseError:
            return self._form(request, message="That token is unknown, expired or revoked.", status=401)
        answer = RedirectResponse("./", status_code=303, headers=NO_STORE)
        set_cookie(request, answer, SESSION_COOKIE, secret)
        delete_cookie(request, answer, FORM_COOKIE)
        return answer

    def _sign_out(self, request: Request, form: dict[str, str]) -> Response:
        visitor = self.visitor(request)
        if visitor is not None:
            require_own_form(form, visitor)
            with transaction(self._database) as session:
                sign_out(session, request.cookies.get(SESSION_COOKIE, ""))
        answer = RedirectResponse("sign-in", status_code=303, headers=NO_STORE)
        delete_cookie(request, answer, SESSION_COOKIE)
        return answer

    def _form(self, request: Request, *, message: str | None, status: int) -> Response:
        csrf = new_secret()
        answer = self._renderer.render(request, "sign_in.html", status=status, csrf=csrf, message=message)
        set_cookie(request, answer, FORM_COOKIE, csrf)
        return answer


def require_own_form(form: dict[str, str], visitor: Visitor) -> None:
    """Raises RoleRequiredError unless a form comes from this session's own page."""
    if not is_same(form.get("csrf", ""), visitor.csrf):
        msg = "the form is not this session's; reload the page and try again"
        raise RoleRequiredError(msg)
