"""Whose certificates are trusted, and how one that is not is told from a server that is not there."""

import ssl
from typing import Final

import httpx

from gramfuse_shared.errors import ConfigurationError

CERTIFICATES_VARIABLE: Final = "SSL_CERT_FILE"
"""The usual variable of OpenSSL; it takes the place of the bundled authorities."""


def trusted_certificates() -> ssl.SSLContext:
    """Read which authorities are trusted: the bundled ones, or those of SSL_CERT_FILE or SSL_CERT_DIR instead."""
    try:
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        msg = f"the certificates that {CERTIFICATES_VARIABLE} or SSL_CERT_DIR names cannot be read: {error}"
        raise ConfigurationError(msg) from error


def certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Return what was wrong with a certificate, if that is behind an error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause
