"""The only module that opens a connection."""

import contextlib
import random
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import httpx

from gramfuse.config import Endpoint, is_loopback
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Problem
from gramfuse_shared.digest import format_content_digest
from gramfuse_shared.errors import (
    CancelledError,
    ConfigurationError,
    DocumentMalformedError,
    GramfuseError,
    RequestMalformedError,
    TooLargeError,
    TransportError,
    UnavailableError,
    error_class,
)
from gramfuse_shared.version import __version__

Result = TypeVar("Result")

USER_AGENT: Final = f"gramfuse/{__version__}"
CERTIFICATES_VARIABLE: Final = "SSL_CERT_FILE"
"""The usual variable of OpenSSL; it takes the place of the bundled authorities."""
MAX_ANSWER_BYTES: Final = 4 * limits.MAX_DOCUMENT_BYTES

# Answers that carry no problem document come from a proxy on the way.
_GATEWAY_STATUSES: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often and how patiently a call is tried again: full jitter below a doubling bound, in seconds."""

    attempts: int = 5
    first_delay: float = 0.25
    longest_delay: float = 8.0

    def delay(self, failures: int, *, jitter: float) -> float:
        """Return the pause after so many failures; `jitter` lies between 0 and 1."""
        return jitter * min(self.longest_delay, self.first_delay * 2.0 ** (failures - 1))


PATIENT: Final = RetryRule(attempts=10)
"""For transfers: about half a minute, in which a server restarts."""


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Download:
    """A file that arrives: `start` is the byte at which it begins, 0 where the server sends it whole."""

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
        self._client = httpx.Client(
            base_url=endpoint.url + "/",
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            transport=connection,
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
            follow_redirects=False,  # the token goes to the server that was named, and nowhere else
            verify=_trusted_certificates(),
            # a proxy has no business between this machine and itself
            trust_env=not is_loopback(httpx.URL(endpoint.url).host),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

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
                return _read_bounded(response)

        return self._repeat(attempt, self._retry)

    def upload(self, path: str, chunks: Callable[[], Iterator[bytes]], *, length: int, digest: str) -> bytes:
        """PUT bytes with their length and digest; `chunks` is called anew for every attempt.

        Raises:
            GramfuseError: the class of the problem document's code.
            TransportError: the server could not be reached after all attempts.
        """
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
            "Content-Digest": format_content_digest(digest),
        }

        def attempt() -> bytes:
            with self._sent("PUT", path, content=chunks(), headers=headers) as response:
                return _read_bounded(response)

        return self._repeat(attempt, self._transfer_retry)

    @contextlib.contextmanager
    def download(self, path: str, *, start: int = 0, etag: str | None = None) -> Iterator[Download]:
        """GET a file's bytes from `start` on; from 0 where the server has another version by now.

        Only the request is tried again, not a stream that breaks: the caller keeps what came and asks for the rest.

        Raises:
            GramfuseError: the class of the problem document's code.
            TransportError: the server could not be reached, or the stream broke.
        """
        headers = {"Accept": "application/octet-stream", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if etag is not None:
                headers["If-Range"] = f'"{etag}"'
        with contextlib.ExitStack() as stack:
            response = self._repeat(
                lambda: stack.enter_context(self._sent("GET", path, headers=headers)), self._transfer_retry
            )
            begin = _range_start(response, start) if response.status_code == httpx.codes.PARTIAL_CONTENT else 0
            yield Download(begin, _chunks(response))

    def events(self, path: str) -> Iterator[Event]:
        """Yield server-sent events until the server ends the stream.

        Raises:
            GramfuseError: the class of the problem document's code.
            TransportError: the server could not be reached, or the stream broke.
        """
        with contextlib.ExitStack() as stack:
            headers = {"Accept": "text/event-stream"}
            response = self._repeat(lambda: stack.enter_context(self._sent("GET", path, headers=headers)), self._retry)
            with _translated():
                yield from parse_events(response.iter_lines())

    # --- one attempt, and the next ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _sent(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:  # noqa: ANN401 - httpx's own
        with _translated():
            response = self._client.send(self._client.build_request(method, path.lstrip("/"), **request), stream=True)
        try:
            if not response.is_success:
                _raise_problem(response)
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


def is_retryable(error: GramfuseError) -> bool:
    """Tell whether the raiser, or the problem document that it came from, says that trying again can help."""
    return bool(error.facts.get("retryable", error.retryable))


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Parse a stream of server-sent events; comments, ids and retry hints are passed over."""
    kind, texts = "message", list[str]()
    for line in lines:
        if not line:
            if texts:
                yield Event(kind, "\n".join(texts))
            kind, texts = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            texts.append(value)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translate what httpx raises; its messages hold no header, so no token."""
    try:
        yield
    except httpx.HTTPError as error:
        untrusted = _certificate_error(error)
        if untrusted is not None:
            msg = (
                f"the server's certificate is not trusted: {untrusted.verify_message}. If an authority of your own "
                f"signed it, set {CERTIFICATES_VARIABLE} to a file with that authority's certificate"
            )
            raise TransportError(msg, cause=type(untrusted).__name__, retryable=False) from error
        msg = f"the server could not be reached: {str(error) or type(error).__name__}"
        raise TransportError(msg, cause=type(error).__name__) from error
    except httpx.InvalidURL as error:
        msg = f"not a valid address: {error}"
        raise RequestMalformedError(msg) from error


def _trusted_certificates() -> ssl.SSLContext:
    """Read which authorities are trusted: the bundled ones, or those of SSL_CERT_FILE or SSL_CERT_DIR instead."""
    try:
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        msg = f"the certificates that {CERTIFICATES_VARIABLE} or SSL_CERT_DIR names cannot be read: {error}"
        raise ConfigurationError(msg) from error


def _certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _chunks(response: httpx.Response) -> Iterator[bytes]:
    with _translated():
        yield from response.iter_raw()  # as it arrives: what came before a break is kept


def _read_bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    with _translated():
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                msg = f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
                raise TooLargeError(msg)
    return bytes(content)


def _raise_problem(response: httpx.Response) -> NoReturn:
    """Raise the class that the server named, with its facts; else what the status says."""
    content = _read_bounded(response)
    announced = response.headers.get("Retry-After", "")
    waiting = {"retry_after_seconds": int(announced)} if announced.isdecimal() else {}
    try:
        problem = Problem.parse(content)
    except DocumentMalformedError:
        _raise_status(response, waiting)
    facts: dict[str, Any] = {**problem.facts, **waiting, "retryable": problem.retryable, "status": problem.status}
    if error_class(problem.code) is GramfuseError:
        facts["code"] = problem.code  # a newer server's, or a fault of the server's own
    raise error_class(problem.code)(problem.detail, **facts)


def _raise_status(response: httpx.Response, waiting: Mapping[str, int]) -> NoReturn:
    status = response.status_code
    where = f"{response.request.method} {response.request.url.path}"
    if status in _GATEWAY_STATUSES:
        msg = f"the server is not ready: HTTP {status} to {where}"
        raise UnavailableError(msg, status=status, **waiting)
    msg = f"HTTP {status} to {where}, and not the answer of a gramfuse server; check the URL"
    raise TransportError(msg, status=status, retryable=False)


def _range_start(response: httpx.Response, wanted: int) -> int:
    """Return the first byte of a 206 answer."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdecimal() or int(first) != wanted:
        msg = f"asked for the bytes from {wanted} on, the server answered Content-Range {unit} {rest}"
        raise TransportError(msg)
    return wanted
