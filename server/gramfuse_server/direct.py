"""Signed requests by which clients write and read single objects of the S3 store, past the API. They are secrets.

`obstore` signs method, address and time, no header: whoever holds such an address may put any bytes of any length,
again and again. So botocore signs here, and length, SHA-256 and *only where nothing lies yet* are part of what is
signed. Where an object lies, `obstore` says.
"""

import base64
import secrets
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import parse_qs, urlsplit, urlunsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url
from pydantic import SecretStr

from gramfuse_server.blobs import Blobs
from gramfuse_server.clock import system_clock
from gramfuse_server.settings import Settings
from gramfuse_shared.contract.http_api import DirectHeader, DirectRequest
from gramfuse_shared.digest import sha256_hex, sha256_hex_of_chunks
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.extras import requiring_extras

if TYPE_CHECKING:
    import httpx
    from botocore.credentials import Credentials
    from obstore.store import S3Store

VARIABLE: Final = "GRAMFUSE_DIRECT_TRANSFERS"
Found = Literal["nothing", "these bytes", "other bytes"]

_EXTRAS: Final = MappingProxyType({"botocore": "direct"})
_NAMED: Final = "x"
_PROBE_PROMISED, _PROBE_SENT = b"gramfuse", b"gramfuss"
_PROBE_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the keys of a store lie, for whoever reaches it at one endpoint."""

    base: str
    region: str

    @classmethod
    def of(cls, blobs: str, endpoint: str | None) -> "Address":
        """Find it out by letting the store sign a key's address, which asks nobody.

        Raises:
            ConfigurationError: the endpoint cannot be one.
        """
        nobody = {"access_key_id": "nobody", "secret_access_key": "nothing"}
        options: dict[str, Any] = nobody if endpoint is None else {**nobody, "endpoint": endpoint.rstrip("/")}
        try:
            store = from_url(blobs, **options)
            signed = urlsplit(obstore.sign(cast("S3Store", store), "GET", _NAMED, timedelta(minutes=1)))
        except (BaseError, ValueError) as error:
            msg = f"{VARIABLE}: the store's address cannot be told: {str(error).partition(chr(10))[0]}"
            raise ConfigurationError(msg) from error
        region = parse_qs(signed.query)["X-Amz-Credential"][0].split("/")[2]
        return cls(urlunsplit((signed.scheme, signed.netloc, signed.path.removesuffix(_NAMED), "", "")), region)


@dataclass(slots=True)
class DirectTransfers:
    """Makes signed requests, and finds out what was put by them.

    `inside` is the store's address for this machine, `outside` for clients.
    """

    blobs: Blobs
    inside: Address
    outside: Address
    credentials: "Credentials"
    lifetime: timedelta
    _checks_digests: bool | None = None
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, *, length: int, sha256: str, now: datetime, replace: bool = False) -> DirectRequest:
        """Let somebody put these bytes at a key, where nothing lies unless `replace`.

        Args:
            key: where.
            length: of the bytes.
            sha256: theirs, in hexadecimal.
            now: the present.
            replace: whether other bytes lie there, which a store did not check, and are in the way.
        """
        return self._signed("PUT", self.outside, key, _promise(length, sha256, replace=replace), now)

    def get(self, key: str, *, now: datetime) -> DirectRequest:
        """Let somebody read what lies at a key, any range of it."""
        return self._signed("GET", self.outside, key, {}, now)

    def look(self, key: str, *, length: int, sha256: str) -> Found:
        """Tell what lies at a key that was handed out.

        A store that refuses bytes of another SHA-256 than was signed has looked at every byte. What any other holds is
        read. Nothing is believed of the client.

        Raises:
            OSError, BaseError: the store does not answer as it should.
        """
        found = self.blobs.size(key)
        if found is None:
            return "nothing"
        if found != length:
            return "other bytes"
        if self.checks_digests() or sha256_hex_of_chunks(self.blobs.chunks(key)) == sha256:
            return "these bytes"
        return "other bytes"

    def checks_digests(self) -> bool:
        """Whether the store refuses what does not have the signed SHA-256: asked once, by a put that should fail."""
        with self._asking:
            if self._checks_digests is None:
                self._checks_digests = self._probe()
            return bool(self._checks_digests)

    def refusal(self) -> str | None:
        """Put a few bytes as a client would; return what the store says against it."""
        import httpx  # noqa: PLC0415 - only where transfers are direct, as below

        try:
            answer = self._put_probe(_PROBE_PROMISED)
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else f"HTTP {answer.status_code}"

    def _probe(self) -> bool | None:
        import httpx  # noqa: PLC0415

        try:
            answer = self._put_probe(_PROBE_SENT)
        except httpx.HTTPError:
            return None
        if answer.is_success:
            return False
        # any other refusal proves nothing; a store that is ill is asked again
        return True if answer.status_code == httpx.codes.BAD_REQUEST else None

    def _put_probe(self, content: bytes) -> "httpx.Response":
        """Put bytes by an address that is signed for the promised ones, and remove them."""
        import httpx  # noqa: PLC0415

        key = f"probes/direct-{secrets.token_hex(8)}"
        promise = _promise(len(_PROBE_PROMISED), sha256_hex(_PROBE_PROMISED), replace=False)
        request = self._signed("PUT", self.inside, key, promise, system_clock())
        headers = {str(header): value for header, value in request.headers.items()}
        answer = httpx.put(request.url.get_secret_value(), content=content, headers=headers, timeout=_PROBE_SECONDS)
        if answer.is_success:
            self.blobs.delete(key)
        return answer

    def _signed(
        self, method: str, address: Address, key: str, headers: dict[DirectHeader, str], now: datetime
    ) -> DirectRequest:
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - only where transfers are direct
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415

        request = AWSRequest(method=method, url=address.base + key, headers=headers)
        seconds = int(self.lifetime.total_seconds())
        S3SigV4QueryAuth(self.credentials.get_frozen_credentials(), "s3", address.region, seconds).add_auth(request)
        return DirectRequest(url=SecretStr(request.url), headers=headers, expires_at=now + self.lifetime)


def open_direct(settings: Settings, blobs: Blobs) -> DirectTransfers | None:
    """Make what signs, if the settings ask for it.

    Raises:
        ConfigurationError: nothing is there to sign with, or the store's address cannot be told.
        ExtraMissingError: botocore is not installed.
    """
    if not settings.direct_transfers:
        return None
    with requiring_extras(VARIABLE, _EXTRAS):
        from botocore.session import Session  # noqa: PLC0415 - a third of a second, for those who want it
    credentials = Session().get_credentials()
    if credentials is None:
        msg = (
            f"{VARIABLE} signs with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a machine's role; there is neither"
        )
        raise ConfigurationError(msg)
    inside = Address.of(settings.blobs, None)
    outside = Address.of(settings.blobs, settings.direct_endpoint) if settings.direct_endpoint else inside
    return DirectTransfers(blobs, inside, outside, credentials, settings.direct_lifetime)


def _promise(length: int, sha256: str, *, replace: bool) -> dict[DirectHeader, str]:
    promised: dict[DirectHeader, str] = {
        "content-length": str(length),
        "x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(sha256)).decode(),
    }
    return promised if replace else {**promised, "if-none-match": "*"}
