"""What is the same of answers by the server and by its object store: broken connections, pieces, ranges."""

import contextlib
from collections.abc import Iterator
from typing import Final

import httpx

from gramfuse.transfer.certificates import CERTIFICATES_VARIABLE, certificate_error
from gramfuse_shared import limits
from gramfuse_shared.errors import RequestMalformedError, TooLargeError, TransportError
from gramfuse_shared.version import __version__

USER_AGENT: Final = f"gramfuse/{__version__}"
POOL: Final = httpx.Limits(max_connections=32, max_keepalive_connections=16)
MAX_ANSWER_BYTES: Final = 4 * limits.MAX_DOCUMENT_BYTES
GATEWAY_STATUSES: Final = frozenset({429, 502, 503, 504})
"""What carries no problem document, and comes from a proxy on the way or from a store that is busy."""
SERVER: Final = "the server"
_PLAIN_ANSWER: Final = "WRONG_VERSION_NUMBER"
"""What OpenSSL says of an answer in plain HTTP."""


@contextlib.contextmanager
def translated(peer: str = SERVER) -> Iterator[None]:
    """Translate what httpx raises; its messages hold no header and no query, so no token and no signature."""
    try:
        yield
    except httpx.HTTPError as error:
        untrusted = certificate_error(error)
        if untrusted is not None:
            msg = (
                f"{peer}'s certificate is not trusted: {untrusted.verify_message}. If an authority of your own "
                f"signed it, set {CERTIFICATES_VARIABLE} to a file with that authority's certificate"
            )
            raise TransportError(msg, cause=type(untrusted).__name__, retryable=False) from error
        if _PLAIN_ANSWER in str(error):
            msg = f"{peer} speaks no TLS there: is it http:// (--allow-http), or another port?"
            raise TransportError(msg, cause=type(error).__name__, retryable=False) from error
        msg = f"{peer} could not be reached: {str(error) or type(error).__name__}"
        raise TransportError(msg, cause=type(error).__name__) from error
    except httpx.InvalidURL as error:
        msg = f"not a valid address: {error}"
        raise RequestMalformedError(msg) from error


def chunks(response: httpx.Response, peer: str = SERVER) -> Iterator[bytes]:
    """Yield the body as it arrives: what came before a break is kept."""
    with translated(peer):
        yield from response.iter_raw()


def read_bounded(response: httpx.Response, most: int = MAX_ANSWER_BYTES) -> bytes:
    """Read an answer whole.

    Raises:
        TooLargeError: it is no answer of ours.
    """
    content = bytearray()
    with translated():
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > most:
                msg = f"the answer is larger than {most} bytes"
                raise TooLargeError(msg)
    return bytes(content)


def first_byte(response: httpx.Response, wanted: int) -> int:
    """Return the byte at which an answer begins to whom wanted all from `wanted` on.

    Raises:
        TransportError: it is another range than that.
    """
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdecimal() or int(first) != wanted:
        msg = f"asked for the bytes from {wanted} on, the answer is Content-Range {unit} {rest}"
        raise TransportError(msg)
    return wanted
