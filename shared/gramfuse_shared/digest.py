"""SHA-256 in the three forms that the contract uses: of bytes, of a canonical document, and as an HTTP field."""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from typing import Any, Final

from gramfuse_shared.errors import DocumentMalformedError, RequestMalformedError

_CONTENT_DIGEST: Final = re.compile(r"^\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*$")


def sha256_hex(content: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of bytes as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def seed_of(text: str) -> int:
    """Return what a random generator begins with, from a text that says what it is for; generators take 32 bits."""
    return int(sha256_hex(text.encode())[:8], 16)


def sha256_hex_of_chunks(chunks: Iterable[bytes]) -> str:
    """Return the SHA-256 of a stream of bytes, one chunk in memory at a time."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def canonical_json(document: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Serialize a JSON value so that equal values have equal bytes (RFC 8785).

    Raises:
        DocumentMalformedError: the value holds NaN, infinity, or an integer that a double cannot hold exactly.
    """
    import rfc8785  # noqa: PLC0415 - the GPU suite runs on machines without it, and signs nothing

    try:
        return rfc8785.dumps(document)
    except rfc8785.CanonicalizationError as error:
        msg = f"the document cannot be written as canonical JSON: {error}"
        raise DocumentMalformedError(msg) from error


def document_digest(document: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the SHA-256 of a document's canonical JSON."""
    return sha256_hex(canonical_json(document))


def format_content_digest(hex_digest: str) -> str:
    """Write a digest as the `Content-Digest` field of RFC 9530: `sha-256=:<base64>:`."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(hex_digest)).decode('ascii')}:"


def parse_content_digest(field: str) -> str:
    """Read a `Content-Digest` field that holds exactly one sha-256 value; return it in hexadecimal.

    Raises:
        RequestMalformedError: the field has another form.
    """
    match = _CONTENT_DIGEST.match(field)
    if match is None:
        msg = "Content-Digest must be 'sha-256=:<base64 of 32 bytes>:' (RFC 9530)"
        raise RequestMalformedError(msg)
    try:
        return base64.b64decode(match[1], validate=True).hex()
    except binascii.Error as error:
        msg = "Content-Digest does not hold valid base64"
        raise RequestMalformedError(msg) from error
