"""Who calls, and may it call now? Decided from the head alone: of what is refused here no byte of a body is read.

Everything under `/v1/` needs a token but `/v1/server`. The token is looked up here, once, and the caller travels with
the request. Two rates, in this process's memory:
  1. tokens: each so many requests a second; what changes something counts tenfold, parts of files do not,
  2. refusals: each address so many wrong tokens and sign-ins a minute. Behind that many it is answered without a look
     at the database, but for tokens that were right a while ago: who shares an address with a flood goes on working.
"""

import asyncio
import math
import re
from collections import Counter
from datetime import timedelta
from typing import Final

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gramfuse_server.api.context import Services, authenticated, keep_caller, keep_refusal
from gramfuse_server.api.problems import problem_response
from gramfuse_server.auth import Caller
from gramfuse_server.rates import Rate, Remembered, subscriber
from gramfuse_server.settings import Settings
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import (
    EncodingUnsupportedError,
    GramfuseError,
    TooManyRequestsError,
    TooSlowError,
    UnauthenticatedError,
)

BURST: Final = timedelta(seconds=20)
"""How much of its rate a token may use at once."""
CHANGE_COST: Final = 10.0
REMEMBERED: Final = timedelta(hours=1)
"""For how long a token that was right is let through to be looked up, whatever else comes from its address."""

OPERATORS: Final = "the operator"

_PUBLIC: Final = "/v1/server"
_SIGN_IN: Final = "/dashboard/sign-in"
_READING_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PART: Final = re.compile(r".*/parts/[0-9]+")
_UNAUTHENTICATED: Final = 401


class Admission:
    """The layer around the app that lets requests in."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        settings: Settings = services.settings
        self._app = app
        self._services = services
        self._tokens = Rate(settings.requests_per_second, settings.requests_per_second * BURST.total_seconds())
        self._refusals = Rate(settings.refusals_per_minute / 60, settings.refusals_per_minute)
        self._right = Remembered(REMEMBERED.total_seconds())
        self._under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in with its caller, or without its body and with the reason why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._admitted(scope)
        except GramfuseError as error:
            if scope["path"] == _SIGN_IN:
                await problem_response(error, instance=_SIGN_IN)(scope, receive, send)
                return
            # the app answers it, because a path that is none is still 404, and the log tells the route
            keep_refusal(scope, error)
            await self._app(scope, _no_body, send)
            return
        if caller is None:
            await self._in_time(scope, receive, self._noting_refusal(scope, send))
            return
        keep_caller(scope, caller)
        owner = caller.organization or OPERATORS
        self._under_way[owner] += 1
        try:
            await self._in_time(scope, receive, send)
        finally:
            self._under_way[owner] -= 1
            if not self._under_way[owner]:
                del self._under_way[owner]

    async def _admitted(self, scope: Scope) -> Caller | None:
        """Return who calls; None where anybody may.

        Raises:
            TooManyRequestsError: the address, or the token, has to wait.
            UnauthenticatedError: the token is none.
            EncodingUnsupportedError: the body is compressed.
        """
        path: str = scope["path"]
        headers = HTTPConnection(scope).headers
        if not path.startswith("/v1/") or path == _PUBLIC:
            if path == _SIGN_IN and scope["method"] not in _READING_METHODS:
                self._require_patience(scope, "")
            return None
        authorization = headers.get("authorization")
        key = sha256_hex((authorization or "").encode())
        self._require_patience(scope, key)
        try:
            caller = await run_in_threadpool(authenticated, self._services, authorization)
        except UnauthenticatedError:
            self._refusals.take(_address(scope))
            raise
        self._right.add(key)
        owner = caller.organization or OPERATORS
        if self._under_way[owner] >= self._services.settings.concurrent_requests:
            raise _too_many(f"{owner} has {self._under_way[owner]} requests under way, which is all that it may", 1)
        cheap = scope["method"] in _READING_METHODS or _PART.fullmatch(path)
        wait = self._tokens.take(caller.token, cost=1.0 if cheap else CHANGE_COST)
        if wait:
            raise _too_many("this token asks more often than it may", wait)
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            msg = "the body is announced with a Content-Encoding; send it as it is"
            raise EncodingUnsupportedError(msg)
        return caller

    def _require_patience(self, scope: Scope, key: str) -> None:
        wait = self._refusals.wait(_address(scope))
        if wait and key not in self._right:
            raise _too_many("too many wrong tokens came from this address", wait)

    def _noting_refusal(self, scope: Scope, send: Send) -> Send:
        """Count a sign-in that failed."""

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == _UNAUTHENTICATED:
                self._refusals.take(_address(scope))
            await send(message)

        return send_noting

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on whose body has to come in time; a part's has a time of its own."""
        if scope["method"] == "PUT" and _PART.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        timed = _TimedRequest(scope, receive, send, within=self._services.settings.body_timeout)
        try:
            await self._app(scope, timed.receive, timed.send)
        except ClientDisconnect:
            if not timed.late:
                raise
        if timed.late:
            await timed.refuse()


class _TimedRequest:
    """A request whose body has to come in time, else the app sees the connection end, and the caller an answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, within: timedelta) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._seconds = within.total_seconds()
        self._deadline = asyncio.get_running_loop().time() + self._seconds
        self._complete = self._answered = False
        self.late = False

    async def receive(self) -> Message:
        """Wait for the next piece of the body until it is late; then, for the connection's end, as long as it takes."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self.late = self._complete = True
            return {"type": "http.disconnect"}
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass an answer on, unless it is about half a body."""
        if not self.late or self._answered:
            self._answered = True
            await self._send(message)

    async def refuse(self) -> None:
        """Answer that the body did not come in time, if nothing else was answered before."""
        if not self._answered:
            error = TooSlowError(f"the request's body did not arrive within {self._seconds:g} s")
            await problem_response(error, instance=self._scope["path"])(self._scope, self._receive, self._send)


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _address(scope: Scope) -> str:
    return subscriber(scope["client"][0] if scope.get("client") else None)


def _too_many(reason: str, wait: float) -> TooManyRequestsError:
    seconds = math.ceil(wait)
    return TooManyRequestsError(f"{reason}; try again in {seconds} s", retry_after_seconds=seconds)
