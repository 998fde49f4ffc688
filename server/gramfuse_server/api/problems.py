"""Errors as RFC 9457 problem documents, whoever raised them: our code, the framework or a bug."""

import json
from collections.abc import Mapping
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from obstore.exceptions import GenericError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gramfuse_server import outages
from gramfuse_server.database import is_full, is_outage
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.http_api import Problem
from gramfuse_shared.errors import (
    GramfuseError,
    MethodNotAllowedError,
    NotFoundError,
    RequestMalformedError,
    StorageFullError,
    TooLargeError,
    TooManyRequestsError,
    TooSlowError,
    UnauthenticatedError,
    UnavailableError,
)

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:gramfuse:problem:"

_log = structlog.get_logger(__name__)

_OF_STATUS: Final[Mapping[int, type[GramfuseError]]] = {
    400: RequestMalformedError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    413: TooLargeError,
    422: RequestMalformedError,
}
_MESSAGE_OF_STATUS: Final[Mapping[int, str]] = {
    404: "there is nothing at this path",
    405: "the path exists, the method does not",
    413: "the body is larger than this path reads",
}
_DATABASE_AWAY: Final = "the server's database does not answer at present; try again in a moment"
_DATABASE_FULL: Final = "the disk of the server's database is full; its operator has to make room"
_STORE_AWAY: Final = "the server's blob store does not answer at present; try again in a moment"
_NO_JSON: Final = "the body is not announced as JSON; send it with the header content-type: application/json"
_FAILED: Final = "the server failed to answer; its log has the cause under this request's id"


def problem_of(error: GramfuseError, *, instance: str | None = None) -> Problem:
    """Describe an error as a problem document."""
    return Problem(
        type=TYPE_PREFIX + error.code,
        title=error.title,
        status=error.status,
        detail=error.message,
        code=error.code,
        retryable=error.retryable,
        instance=instance,
        facts=error.facts,
    )


def problem_response(error: GramfuseError, *, instance: str | None = None) -> Response:
    """Answer an error."""
    headers = {"WWW-Authenticate": 'Bearer realm="gramfuse"'} if isinstance(error, UnauthenticatedError) else {}
    for name, fact in (("Allow", "allow"), ("Content-Range", "content_range")):
        if fact in error.facts:
            headers[name] = str(error.facts[fact])
    if isinstance(error, TooManyRequestsError):
        headers["Retry-After"] = str(error.facts["retry_after_seconds"])
    elif error.retryable and error.status == UNAVAILABLE:
        headers["Retry-After"] = "1"
    if isinstance(error, TooSlowError):
        headers["Connection"] = "close"  # what follows would be the rest of a body
    content = problem_of(error, instance=instance).model_dump_json()
    return Response(content, status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


INTERNAL: Final = 500
UNAVAILABLE: Final = 503


def problem_responses(*errors: type[GramfuseError]) -> dict[int | str, dict[str, Any]]:
    """Declare errors for the OpenAPI document: one response per status, one example per error."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in dict.fromkeys(errors):
        response = responses.setdefault(
            error.status,
            {
                "description": error.title,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        if error.title not in response["description"]:
            response["description"] += f" · {error.title}"
        response["content"][MEDIA_TYPE]["examples"][error.code] = {"value": _example(error)}
    return responses


def _example(error: type[GramfuseError]) -> dict[str, Any]:
    summary = (error.__doc__ or error.title).partition("\n")[0]
    example: dict[str, Any] = json.loads(problem_of(error(summary)).model_dump_json())
    return example


def install_handlers(app: FastAPI) -> None:
    """Answer our errors and the framework's with problem documents."""

    def answer(request: Request, error: Exception) -> Response:
        translated = translate(error)
        if not isinstance(error, GramfuseError) and translated.status >= INTERNAL:
            _tell_failure(error, request.url.path)
        return problem_response(translated, instance=request.url.path)

    for kind in (GramfuseError, RequestValidationError, HTTPException, SQLAlchemyError, GenericError):
        app.add_exception_handler(kind, answer)


def translate(error: Exception) -> GramfuseError:
    """Return the error of ours that stands for any exception."""
    if isinstance(error, GramfuseError):
        return error
    if isinstance(error, RequestValidationError):
        found = error.errors()
        if any(_is_unannounced(one) for one in found):
            return RequestMalformedError(_NO_JSON)
        return RequestMalformedError(describe_validation("request", found))
    if is_full(error):
        return StorageFullError(_DATABASE_FULL)
    if is_outage(error):
        return UnavailableError(_DATABASE_AWAY)
    if isinstance(error, GenericError):  # of obstore: whatever is neither missing nor forbidden
        return UnavailableError(_STORE_AWAY)
    if isinstance(error, HTTPException) and error.status_code in _OF_STATUS:
        allow = (error.headers or {}).get("Allow")
        message = _MESSAGE_OF_STATUS.get(error.status_code, str(error.detail))
        return _OF_STATUS[error.status_code](message, **({"allow": allow} if allow else {}))
    return GramfuseError(_FAILED)


def _is_unannounced(error: Mapping[str, Any]) -> bool:
    """Tell whether a body came as another kind than JSON: then it is still the bytes that came, whatever they say."""
    return error["loc"] == ("body",) and isinstance(error.get("input"), bytes)


def _tell_failure(error: Exception, path: str) -> None:
    told = {"path": path, "error": type(error).__name__}
    if is_outage(error):  # no bug of ours, and there are as many as requests: what the driver says is enough
        _log.error("request failed", **told, reason=outages.describe(error))
    else:
        _log.error("request failed", **told, exc_info=error)


class ProblemDocuments:
    """The outermost layer: whatever below answers an error in another form, or crashes, becomes a problem document."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on but foreign errors."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        replaced = False

        async def send_problems(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                error = _foreign_error(message)
                if error is not None:
                    replaced = True
                    await problem_response(error, instance=scope["path"])(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_problems)
        except Exception as error:  # noqa: BLE001 - the border of the process: a bug is logged and answered
            _tell_failure(error, scope["path"])
            if not started:
                await problem_response(translate(error), instance=scope["path"])(scope, receive, send)


def _foreign_error(start: Message) -> GramfuseError | None:
    status = start["status"]
    headers = {name.lower(): value for name, value in start["headers"]}
    kind = headers.get(b"content-type", b"").partition(b";")[0]
    if status < 400 or kind in {MEDIA_TYPE.encode(), b"application/json", b"text/html"}:  # noqa: PLR2004 - HTTP's errors
        return None
    allow = headers.get(b"allow")
    message = _MESSAGE_OF_STATUS.get(status, _FAILED)
    return _OF_STATUS.get(status, GramfuseError)(message, **({"allow": allow.decode()} if allow else {}))
