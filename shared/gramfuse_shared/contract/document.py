"""The base of every document that travels: frozen, closed, and with one canonical digest."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gramfuse_shared.digest import canonical_json, sha256_hex
from gramfuse_shared.errors import DocumentMalformedError


class Document(BaseModel):
    """A value of the contract. Unknown keys are refused: a document means the same to both parties or nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=False)

    @classmethod
    def parse(cls, raw: bytes | str) -> Self:
        """Read JSON from an untrusted source.

        Raises:
            DocumentMalformedError: it is not JSON, or does not follow the schema; the message names the first places.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise DocumentMalformedError(describe_validation(cls.__name__, error.errors())) from error

    def canonical(self) -> bytes:
        """Return the document's canonical JSON (RFC 8785)."""
        return canonical_json(self.model_dump(mode="json"))

    def content_digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hexadecimal."""
        return sha256_hex(self.canonical())


def describe_validation(what: str, errors: Sequence[Any], *, most: int = 5) -> str:
    """Turn pydantic's list of errors into one sentence a person can act on; values are left out on purpose."""
    places = [
        f"{'.'.join(str(step) for step in error['loc']) or 'document'}: {error['msg']}" for error in errors[:most]
    ]
    more = f" (and {len(errors) - most} more)" if len(errors) > most else ""
    return f"{what}: {'; '.join(places)}{more}"
