"""What passes between the pages and a browser besides the pages: policy headers, cookies, forms, relative addresses."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gramfuse_shared.errors import RequestMalformedError, TooLargeError

NO_STORE: Final = {"Cache-Control": "no-store"}
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


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a form may be."""

    byte_count: int
    fields: int


STRANGERS: Final = Bounds(byte_count=4096, fields=8)
"""Of a form that comes before anybody has signed in."""


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


def root_of(request: Request) -> str:
    """Return the way from a page's address to the dashboard's, `../../` of two folders down.

    Links are relative, so that a proxy may serve the dashboard under another path.
    """
    path = str(request.scope["path"]).removeprefix(str(request.scope.get("root_path") or ""))
    return "../" * (path.count("/") - 1)


async def read_form(request: Request, bounds: Bounds = STRANGERS) -> dict[str, str]:
    """Read an urlencoded form.

    Raises:
        TooLargeError, RequestMalformedError: it is neither.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bounds.byte_count:
            msg = f"the form is larger than {bounds.byte_count} bytes"
            raise TooLargeError(msg)
    try:
        fields = parse_qs(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=bounds.fields, strict_parsing=bool(body)
        )
    except ValueError as error:
        msg = "the form is not urlencoded"
        raise RequestMalformedError(msg) from error
    return {name: values[-1] for name, values in fields.items()}


def set_cookie(request: Request, answer: Response, name: str, value: str) -> None:
    """Set a cookie for the dashboard's addresses, out of reach of scripts and other sites."""
    answer.set_cookie(
        name,
        value,
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def delete_cookie(request: Request, answer: Response, name: str) -> None:
    """Have the browser forget a cookie."""
    answer.delete_cookie(
        name, path=_path(request), secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )


def _path(request: Request) -> str:
    return str(request.scope.get("root_path") or "/")
