"""The connection to the server. Beside it only `store` opens one, to where the server says."""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx

from gramfuse.config import Endpoint, is_loopback
from gramfuse.transfer.certificates import trusted_certificates
from gramfuse.transfer.events import Event, parse_events
from gramfuse.transfer.refusals import raise_problem
from gramfuse.transfer.responses import POOL, SERVER, USER_AGENT, chunks, first_byte, read_bounded, translated
from gramfuse.transfer.retrying import PATIENT, RetryRule, is_retryable
from gramfuse.transfer.store import Store, StoreUnreachableError, named
from gramfuse_shared.contract.http_api import (
    LOCATION_TYPE,
    AnnouncedPart,
    DirectRequest,
    FileLocation,
    PartAnnouncement,
    ServerInfo,
)
from gramfuse_shared.digest import format_content_digest
from gramfuse_shared.errors import (
    CancelledError,
    DigestMismatchError,
    GramfuseError,
    NotFoundError,
)

Result = TypeVar("Result")

_log: Final = logging.getLogger("gramfuse")


@dataclass(frozen=True, slots=True)
class Download:
    """A file that arrives: `start` is the byte at which it begins, 0 where it comes whole."""

    start: int
    chunks: Iterator[bytes]


class Transport:
    """Calls to one server. Every call is idempotent by the server's contract, so each is tried again after a failure.

    Args:
        endpoint: address and token.
        connection: what carries a request, for tests: an httpx transport (`handle_request`, `close`).
        retry: how often and how patiently a call is tried again; default: PATIENT for transfers, a few seconds else.
        timeout: seconds without a byte after which a connection counts as broken.
        sleep, jitter: time and chance.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connection: httpx.BaseTransport | None = None,
        retry: RetryRule | None = None,
        timeout: float = 60.0,
        sleep: Callable[[float], object] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.endpoint = endpoint
        self._retry = retry or RetryRule()
        self._transfer_retry = retry or PATIENT
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._jitter = jitter
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if endpoint.token is not None:
            headers["Authorization"] = f"Bearer {endpoint.token.reveal()}"
        patience = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        certificates = trusted_certificates()
        self._store = Store(endpoint, connection=connection, timeout=patience, certificates=certificates)
        self._asking = threading.Lock()
        self._direct: bool | None = False if endpoint.through_server else None
        self._client = httpx.Client(
            base_url=endpoint.url + "/",
            headers=headers,
            timeout=patience,
            transport=connection,
            limits=POOL,
            verify=certificates,
            follow_redirects=False,  # the token goes to the server that was named, and nowhere else
            # a proxy has no business between this machine and itself
            trust_env=not is_loopback(httpx.URL(endpoint.url).host),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._store.close()

    def stop(self) -> None:
        """Let calls of other threads end at their next chunk or attempt."""
        self._stopped.set()

    def require_running(self) -> None:
        """Require that nobody stopped the calls.

        Raises:
            CancelledError: somebody did.
        """
        if self._stopped.is_set():
            msg = "stopped"
            raise CancelledError(msg)

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,  # noqa: ANN401 - any JSON value
        query: Mapping[str, str | int | None] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a request and return the answer's JSON text.

        Raises:
            GramfuseError: the class of the problem document's code.
            TransportError: the server could not be reached after all attempts.
        """
        parameters = {key: value for key, value in (query or {}).items() if value is not None}

        def attempt() -> bytes:
            with self._sent(method, path, json=json, params=parameters, headers=headers) as response:
                return read_bounded(response)

        return self._repeat(attempt, self._retry)

    def upload(self, path: str, chunks: Callable[[], Iterator[bytes]], *, length: int, digest: str) -> None:
        """Send a part: into the server's store where it has one for this, else to the server.

        Args:
            path: the part's.
            chunks: its bytes, anew for every attempt; not called where the store has them already.
            length: of the bytes.
            digest: their SHA-256.

        Raises:
            GramfuseError: the class of the problem document's code.
            TransportError: server or store could not be reached after all attempts.
        """
        if self._puts_directly():
            try:
                self._repeat(lambda: self._put(path, chunks, length, digest), self._transfer_retry)
            except StoreUnreachableError as error:
                self._go_through_server(error)
            except NotFoundError:
                self._direct = False  # switched off since; of a part that is not expected the server says so again
            else:
                return
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
            "Content-Digest": format_content_digest(digest),
        }

        def attempt() -> bytes:
            with self._sent("PUT", path, content=chunks(), headers=headers) as response:
                return read_bounded(response)

        self._repeat(attempt, self._transfer_retry)

    @contextlib.contextmanager
    def download(self, path: str, *, start: int = 0, etag: str | None = None) -> Iterator[Download]:
        """GET a file's bytes from `start` on, from the store where the server says so; from 0 of another version.

        Only the request is tried again, not a stream that breaks: the caller keeps what came and asks for the rest.

        Raises:
            GramfuseError: the class of the problem document's code.
            TransportError: the server could not be reached, or the stream broke.
        """
        headers = {"Accept": "application/octet-stream", "Accept-Encoding": "identity"}
        if self._direct is not False:
            headers["Accept"] = f"{LOCATION_TYPE}, {headers['Accept']}"
        if start:
            headers["Range"] = f"bytes={start}-"
            if etag is not None:
                headers["If-Range"] = f'"{etag}"'
        with contextlib.ExitStack() as stack:

            def attempt() -> Download:
                response = stack.enter_context(self._sent("GET", path, headers=headers))
                if response.headers.get("Content-Type", "").partition(";")[0] != LOCATION_TYPE:
                    return Download(first_byte(response, start), chunks(response))
                location = FileLocation.parse(read_bounded(response))
                wanted = start if etag in {None, location.sha256} else 0
                response = stack.enter_context(self._store.get(location.get, start=wanted))
                return Download(first_byte(response, wanted), chunks(response, named(location.get)))

            try:
                arriving = self._repeat(attempt, self._transfer_retry)
            except StoreUnreachableError as error:
                self._go_through_server(error)
                headers["Accept"] = "application/octet-stream"
                arriving = self._repeat(attempt, self._transfer_retry)
            yield arriving

    def events(self, path: str) -> Iterator[Event]:
        """Yield server-sent events until the server ends the stream.

        Raises:
            GramfuseError: the class of the problem document's code.
            TransportError: the server could not be reached, or the stream broke.
        """
        with contextlib.ExitStack() as stack:
            headers = {"Accept": "text/event-stream"}
            response = self._repeat(lambda: stack.enter_context(self._sent("GET", path, headers=headers)), self._retry)
            with translated():
                yield from parse_events(response.iter_lines())

    # --- past the server -----------------------------------------------------------------------------------------

    def _puts_directly(self) -> bool:
        """Whether the server has parts put into its store: it is asked once."""
        with self._asking:
            if self._direct is None:
                self._direct = ServerInfo.parse(self.call("GET", "v1/server")).direct_transfers
            return self._direct

    def _go_through_server(self, error: StoreUnreachableError) -> None:
        if self._direct is not False:
            self._direct = False
            _log.warning(
                "%s; bytes go through the server instead (GRAMFUSE_THROUGH_SERVER=1 says so beforehand)", error
            )

    def _put(self, path: str, chunks: Callable[[], Iterator[bytes]], length: int, digest: str) -> None:
        """Announce a part, put it where the server says, announce it again: then the server looks at it."""
        part = PartAnnouncement(bytes=length, sha256=digest)
        place = self._announce(path, part)
        if place is None:
            return  # an earlier attempt's answer was lost, or an earlier run's
        self._store.put(place, chunks())
        if self._announce(path, part) is not None:
            msg = "the object store does not hold the bytes that were sent to it"
            raise DigestMismatchError(msg)

    def _announce(self, path: str, part: PartAnnouncement) -> DirectRequest | None:
        with self._sent("POST", path, json=part.model_dump(mode="json")) as response:
            return AnnouncedPart.parse(read_bounded(response)).put

    # --- one attempt, and the next ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _sent(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:  # noqa: ANN401 - httpx's own
        with translated(f"{SERVER} at {self.endpoint.url}"):
            response = self._client.send(self._client.build_request(method, path.lstrip("/"), **request), stream=True)
        try:
            if not response.is_success:
                raise_problem(response)
            yield response
        finally:
            response.close()

    def _repeat(self, attempt: Callable[[], Result], retry: RetryRule) -> Result:
        failures = 0
        while True:
            try:
                return attempt()
            except GramfuseError as error:
                failures += 1
                if not is_retryable(error) or failures >= retry.attempts:
                    raise
                announced = error.facts.get("retry_after_seconds")
                pause = retry.delay(failures, jitter=self._jitter())
                self._sleep(max(pause, min(float(announced), 60.0)) if isinstance(announced, int) else pause)
                self.require_running()
