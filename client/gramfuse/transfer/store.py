"""The connection to a server's object store: single requests that the server signed, and never the token."""

import contextlib
import logging
import ssl
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import httpx

from gramfuse.config import Endpoint, is_loopback
from gramfuse.transfer.refusals import raise_refusal
from gramfuse.transfer.responses import POOL, USER_AGENT, read_bounded, translated
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import DirectRequest

_UNREACHED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_SIGNED: Final = "X-Amz-Signature="


class StoreUnreachableError(Exception):
    """From here the store cannot be reached, and never could: another way has to be gone."""


class Store:
    """Requests to whatever addresses the server names.

    Args:
        endpoint: the server's, whose rules hold here: https, or http if it was allowed or nothing leaves this machine.
        connection: what carries a request, for tests.
        timeout: as the server's.
        certificates: whom to trust.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connection: httpx.BaseTransport | None,
        timeout: httpx.Timeout,
        certificates: ssl.SSLContext,
    ) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._timeout = timeout
        self._certificates = certificates
        self._clients: dict[str, httpx.Client] = {}
        self._opening = threading.Lock()
        self._answered: set[str] = set()
        logging.getLogger("httpx").addFilter(_hide_signatures)  # it writes each request's address into its log

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()

    def put(self, request: DirectRequest, content: Iterator[bytes]) -> None:
        """Put bytes where the server said; what lies there already, it has to look at.

        Raises:
            StoreUnreachableError: the store cannot be reached from here.
            DigestMismatchError: these are not the bytes that were announced.
            TransportError, UnavailableError: it did not work this time.
        """
        headers = {"content-type": "application/octet-stream"} | _signed_headers(request)
        with self._sent("PUT", request, headers, content) as response:
            if response.status_code == httpx.codes.PRECONDITION_FAILED:
                return
            _require_success(response, named(request))
            read_bounded(response, limits.MIB)  # so that the connection serves again

    @contextlib.contextmanager
    def get(self, request: DirectRequest, *, start: int) -> Iterator[httpx.Response]:
        """Read an object from byte `start` on, or as the store likes.

        Raises:
            StoreUnreachableError: the store cannot be reached from here.
            TransportError, UnavailableError: it did not work this time.
        """
        headers = {"accept-encoding": "identity"} | _signed_headers(request)
        if start:
            headers["range"] = f"bytes={start}-"
        with self._sent("GET", request, headers) as response:
            _require_success(response, named(request))
            yield response

    @contextlib.contextmanager
    def _sent(
        self, method: str, request: DirectRequest, headers: dict[str, str], content: Iterator[bytes] | None = None
    ) -> Iterator[httpx.Response]:
        url, peer = request.url.get_secret_value(), named(request)
        client = self._client(url, peer)
        with translated(peer):
            try:
                sent = client.send(client.build_request(method, url, headers=headers, content=content), stream=True)
            except _UNREACHED as error:
                if peer in self._answered:
                    raise
                msg = f"{peer} cannot be reached from here: {str(error) or type(error).__name__}"
                raise StoreUnreachableError(msg) from error
        self._answered.add(peer)
        try:
            yield sent
        finally:
            sent.close()

    def _client(self, url: str, peer: str) -> httpx.Client:
        parts = urlsplit(url)
        host, local = parts.hostname or "", is_loopback(parts.hostname or "")
        loopback = local and is_loopback(urlsplit(self._endpoint.url).hostname or "")
        if local and not loopback:
            msg = f"{peer} would be this machine; its operator has to name an https:// address of the store"
            raise StoreUnreachableError(msg)
        if parts.scheme != "https" and not (parts.scheme == "http" and (self._endpoint.allow_http or loopback)):
            msg = f"{peer} would be reached in the clear; its operator has to name an https:// address"
            raise StoreUnreachableError(msg)
        with self._opening:
            if host not in self._clients:
                self._clients[host] = httpx.Client(
                    headers={"User-Agent": USER_AGENT},
                    timeout=self._timeout,
                    transport=self._connection,
                    limits=POOL,
                    verify=self._certificates,
                    follow_redirects=False,  # what is signed is signed for this host
                    trust_env=not local,
                )
            return self._clients[host]


def named(request: DirectRequest) -> str:
    """Name a store in messages: its host and nothing else of an address, which is a secret."""
    return f"the server's object store at {urlsplit(request.url.get_secret_value()).hostname}"


def _signed_headers(request: DirectRequest) -> dict[str, str]:
    return {str(name): value for name, value in request.headers.items()}


def _require_success(response: httpx.Response, peer: str) -> None:
    if not response.is_success:
        raise_refusal(response, peer)


def _hide_signatures(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(_hidden(argument) for argument in record.args)
    return True


def _hidden(argument: object) -> object:
    if isinstance(argument, httpx.URL) and _SIGNED in str(argument):
        return f"{str(argument).partition('?')[0]}?***"
    return argument
