"""The forms of every name that travels, so that a path, a query or a file name is never built from anything else."""

import base64
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from gramfuse_shared import limits

_SLUG: Final = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"

SLUG_PATTERN: Final = rf"^{_SLUG}$"
PROJECT_PATTERN: Final = rf"^{_SLUG}\.{_SLUG}$"
JOB_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,63}$"
DIGEST_PATTERN: Final = r"^[0-9a-f]{64}$"
FILE_PATTERN: Final = r"^[A-Za-z0-9._-]{1,128}$"
RELEASE_PATTERN: Final = r"^[0-9a-f]{32}$"
VERSION_PATTERN: Final = r"^[0-9A-Za-z.+-]{1,32}$"
BASE64_PATTERN: Final = r"^[A-Za-z0-9+/]{1,1024}={0,2}$"
KEY_PATTERN: Final = r"^[A-Za-z0-9+/]{43}=$"
SHARE_PATTERN: Final = r"^[A-Za-z0-9+/]{44}$"
SIGNATURE_PATTERN: Final = r"^[A-Za-z0-9+/]{86}==$"

_SLUG_IN_WORDS: Final = "up to 40 lower-case letters, digits and hyphens, no hyphen first or last"
IN_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        SLUG_PATTERN: _SLUG_IN_WORDS,
        PROJECT_PATTERN: f"an organization, a dot and a name, each of {_SLUG_IN_WORDS}",
        JOB_PATTERN: "up to 64 lower-case letters, digits and hyphens, no hyphen first",
        DIGEST_PATTERN: "64 lower-case hexadecimal digits",
        FILE_PATTERN: "up to 128 letters, digits, dots, hyphens and underscores",
        VERSION_PATTERN: "a version: up to 32 letters, digits, dots, hyphens and plus signs",
        RELEASE_PATTERN: "32 lower-case hexadecimal digits",
        BASE64_PATTERN: "base64",
        KEY_PATTERN: "32 bytes in base64",
        SHARE_PATTERN: "33 bytes in base64",
        SIGNATURE_PATTERN: "64 bytes in base64",
    }
)
"""Each pattern in words, for messages."""


def _refuse_dots(name: str) -> str:
    if set(name) == {"."}:
        msg = "a file name may not consist of dots alone"
        raise ValueError(msg)
    return name


def _refuse_unprintable(name: str) -> str:
    if not name.isprintable():
        msg = "a tensor name may hold printable characters only"
        raise ValueError(msg)
    return name


def _refuse_second_spelling(text: str) -> str:
    if base64.b64encode(base64.b64decode(text)).decode("ascii") != text:
        msg = "the unused bits of base64 are zero, so that equal bytes are equal text"
        raise ValueError(msg)
    return text


OrganizationName = Annotated[str, Field(pattern=SLUG_PATTERN, examples=["globex"])]
"""An organization's name: lower-case letters, digits and hyphens, 40 at most."""

ProjectId = Annotated[str, Field(pattern=PROJECT_PATTERN, examples=["acme.tweets"])]
"""`<coordinating organization>.<name>`: unique by construction, so that creating one reveals nothing of others'."""

JobId = Annotated[str, Field(pattern=JOB_PATTERN, examples=["regmean-1"])]
"""Chosen by the client, so that a repeated submission is the same job. A model bears its job's id."""

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN, examples=["e3b0c44298fc1c149afbf4c8996fb924" * 2])]
"""SHA-256 as 64 lower-case hexadecimal digits. A contribution's id is its manifest's digest."""

FileName = Annotated[str, Field(pattern=FILE_PATTERN, examples=["weights.safetensors"]), AfterValidator(_refuse_dots)]
"""One component of a path, never a path."""

Key = Annotated[str, Field(pattern=KEY_PATTERN), AfterValidator(_refuse_second_spelling)]
"""A public key of Ed25519 or X25519: its 32 raw bytes in base64."""

Share = Annotated[str, Field(pattern=SHARE_PATTERN)]
"""A Shamir share: 33 bytes in base64."""

Signature = Annotated[str, Field(pattern=SIGNATURE_PATTERN), AfterValidator(_refuse_second_spelling)]
"""An Ed25519 signature: 64 bytes in base64."""

TensorName = Annotated[
    str,
    Field(min_length=1, max_length=limits.MAX_TENSOR_NAME_CHARACTERS),
    AfterValidator(_refuse_unprintable),
]
"""A checkpoint's key, as `save_pretrained` writes it."""

_FILE: Final = re.compile(FILE_PATTERN)


def is_file_name(name: str) -> bool:
    """Tell whether a name may be a file's: one path component of harmless characters."""
    return _FILE.fullmatch(name) is not None and set(name) != {"."}
