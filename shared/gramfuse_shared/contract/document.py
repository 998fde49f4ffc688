"""The base of every document that travels: frozen, closed, and with one canonical digest."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from gramfuse_shared.digest import canonical_json, sha256_hex
from gramfuse_shared.errors import DocumentMalformedError
from gramfuse_shared.identifiers import IN_WORDS

_FAULTS: Final = {
    "extra_forbidden": " is not a key that is known here",
    "missing": " is missing",
    "json_invalid": " is not JSON",
    "finite_number": " must be a finite number",
    "int_from_float": " must be a whole number",
}
_BOUNDS: Final = {
    "greater_than_equal": ("be at least {}", "ge", ""),
    "greater_than": ("be more than {}", "gt", ""),
    "less_than_equal": ("be at most {}", "le", ""),
    "less_than": ("be less than {}", "lt", ""),
    "string_too_short": ("have at least {}", "min_length", "character"),
    "string_too_long": ("have at most {}", "max_length", "character"),
    "too_short": ("have at least {}", "min_length", "item"),
    "too_long": ("have at most {}", "max_length", "item"),
}
_QUOTED: Final = re.compile("'([^']*)'")
_KINDS: Final = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
}


class Document(BaseModel):
    """A value of the contract. Unknown keys are refused: a document means the same to both parties or nothing."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=False, serialize_by_alias=True
    )

    @classmethod
    def parse(cls, raw: bytes | str) -> Self:
        """Read JSON from an untrusted source.

        Raises:
            DocumentMalformedError: it is not JSON, or does not follow the schema; the message names the first places.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise DocumentMalformedError(describe_validation(cls.__name__, error.errors(), cls)) from error

    def canonical(self) -> bytes:
        """Return the document's canonical JSON (RFC 8785)."""
        return canonical_json(self.model_dump(mode="json"))

    def content_digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hexadecimal."""
        return sha256_hex(self.canonical())


class Reply(Document):
    """What a server answers a call with. Keys that a newer server has added are passed over, so that clients of the
    version before go on; what is signed, or stands for a promise, is a closed `Document` within.
    """

    model_config = ConfigDict(extra="ignore")


def describe_validation(
    what: str, errors: Sequence[Any], model: type[BaseModel] | None = None, *, most: int = 5
) -> str:
    """Turn pydantic's list of errors into one sentence a person can act on; values are left out on purpose.

    Args:
        what: what was read.
        errors: pydantic's.
        model: what it was read as: of a key that it does not have, the likely one or all that there are is told.
        most: errors that are told.
    """
    places = [f"{_place(error['loc'])}{_fault(error)}{_keys_instead(error, model)}" for error in errors[:most]]
    more = f" (and {len(errors) - most} more)" if len(errors) > most else ""
    return f"{what}: {'; '.join(places)}{more}"


def _keys_instead(error: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    if error["type"] != "extra_forbidden" or model is None:
        return ""
    *before, wrong = error["loc"]
    keys = _keys_at(model, before)
    likely = difflib.get_close_matches(str(wrong), keys, n=1)
    if likely:
        return f" (did you mean {likely[0]}?)"
    return f" (known are {', '.join(keys)})" if keys else ""


def _keys_at(model: type[BaseModel], steps: Sequence[str | int]) -> list[str]:
    """Return the keys of the mapping at a place of a document; steps that name no field are of lists and unions."""
    models = [model]
    for step in steps:
        fields = [one.model_fields[str(step)] for one in models if str(step) in one.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
    return sorted({field.alias or name for one in models for name, field in one.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _place(steps: Sequence[str | int]) -> str:
    # of a union pydantic names the branch too: alpha.float, alpha.tuple[Conditional, ...]
    named = [str(step) for step in steps if str(step) not in _KINDS and "[" not in str(step)]
    return ".".join(named) or "document"


def _fault(error: Mapping[str, Any]) -> str:
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return f" must be {IN_WORDS.get(pattern, f'of the form {pattern}')}"
    if kind == "literal_error":
        likely = difflib.get_close_matches(str(error.get("input")), _QUOTED.findall(context["expected"]), n=1)
        return f" must be {context['expected']}{f' (did you mean {likely[0]}?)' if likely else ''}"
    if kind in _BOUNDS:
        words, key, counted = _BOUNDS[kind]
        bound = context[key]
        noun = f" {counted}{'' if bound == 1 else 's'}" if counted else ""
        return f" must {words.format(f'{bound}{noun}')}"
    if kind in _FAULTS:
        return _FAULTS[kind]
    if kind.endswith(("_type", "_parsing")):
        name = kind.removesuffix("_type").removesuffix("_parsing")
        return f" must be {_KINDS.get(name, f'of the kind {name}')}"
    message = str(error["msg"])
    return f": {message.partition(', ')[2] if kind == 'value_error' else message}"
