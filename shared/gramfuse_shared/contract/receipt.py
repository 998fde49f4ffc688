"""The receipt of a merge: what went in, what was done, what came out, signed by the server.

The signature is Ed25519 (RFC 8032) over the canonical JSON (RFC 8785) of the receipt. Signing is the server's,
verifying the client's; this module only says what the bytes are.
"""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import FileEntry, PolicyReference
from gramfuse_shared.contract.recipe import Overridable, Recipe
from gramfuse_shared.identifiers import BASE64_PATTERN, Digest, JobId, Key, OrganizationName, ProjectId, Signature

RECEIPT_FILE_NAME: Final = "receipt.json"
CARD_FILE_NAME: Final = "README.md"
SIGNATURE_BYTES: Final = 64
PUBLIC_KEY_BYTES: Final = 32

Base64 = Annotated[str, Field(pattern=BASE64_PATTERN)]


class MergedContribution(Document):
    """A member of the cohort, by its manifest's digest, with its weight in the recipe.

    `signature` is that of the contribution's statement, made with the key `identity`; contributions of before there
    were any have neither.
    """

    organization: OrganizationName
    manifest: Digest
    weight: Overridable
    identity: Key | None = Field(default=None, exclude_if=lambda value: value is None)
    signature: Signature | None = Field(default=None, exclude_if=lambda value: value is None)


class MergedAnswer(Document):
    """An answer to a request whose statistics were merged, by its document's digest."""

    organization: OrganizationName
    answer: Digest


class Receipt(Document):
    """What the server declares about one model.

    `answers` are of a model that was merged anew with a request's; `session` is the digest of the manifest of the
    secure sum that the model was merged from.
    """

    format: Literal["gramfuse/receipt/1"] = "gramfuse/receipt/1"
    project: ProjectId
    model: JobId
    attempt: Annotated[int, Field(ge=1)]
    base: Digest
    policy: PolicyReference
    recipe: Recipe
    method_version: Annotated[str, Field(max_length=64)]
    contributions: Annotated[tuple[MergedContribution, ...], Field(min_length=1, max_length=limits.MAX_COHORT)]
    answers: Annotated[tuple[MergedAnswer, ...], Field(max_length=limits.MAX_COHORT)] = Field(
        default=(), exclude_if=lambda value: not value
    )
    session: Digest | None = Field(default=None, exclude_if=lambda value: value is None)
    outputs: Annotated[tuple[FileEntry, ...], Field(min_length=1, max_length=limits.MAX_FILES_PER_UPLOAD)]
    created: datetime
    software: Annotated[str, Field(max_length=128)]


class SignedReceipt(Document):
    """A receipt with its signature; `public_key` and `signature` are base64 of raw bytes."""

    receipt: Receipt
    algorithm: Literal["Ed25519"] = "Ed25519"
    public_key: Base64
    signature: Base64
