"""Reads the texts that a model is run on: JSON lines, plain text, or a folder that `datasets` saved."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

from gramfuse.naming import first_names
from gramfuse_shared.errors import ConfigurationError, DocumentMalformedError, FileUnreadableError

Text = str | tuple[str, str] | list[str]
"""A text; a pair of texts (for an encoder-decoder: source and target); or a text as a list of words."""

_TEXT_FIELDS: Final = ("text", "sentence", "content", "document")
_WORD_FIELDS: Final = ("tokens", "words")
_MOST_NAMED: Final = 12
"""Fields of a record that a message names."""

_JSON_LINES: Final = frozenset({".jsonl", ".json", ".ndjson"})
_PLAIN_TEXT: Final = frozenset({".txt", ".text", ""})  # without an ending: a pipe, or a file that says nothing else


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record hold the text. None of `text` and `tokens`: found by their usual names."""

    text: str | None = None
    pair: str | None = None
    tokens: str | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and (self.text is not None or self.pair is not None):
            msg = "a record holds either words (--tokens) or texts (--text-field, --pair-field), not both"
            raise ConfigurationError(msg)


def read_texts(
    path: Path, fields: Fields | None = None, *, split: str | None = None, limit: int | None = None
) -> list[Text]:
    """Read at most `limit` texts, in the file's order; empty ones are left out.

    Args:
        path: `*.jsonl` or `*.json` with an object per line, `*.txt` or a name without an ending with a text per line
            (all also gzipped, as `*.gz`), or a folder of `datasets.Dataset.save_to_disk`.
        fields: which fields of a record hold the text.
        split: which split of a saved DatasetDict.
        limit: None for all.

    Raises:
        FileUnreadableError: no such file or folder, or not readable.
        DocumentMalformedError: a record is not an object or lacks the field; the message names the line.
        ConfigurationError: a split or field must be named, or the file's ending is another, as of a table.
    """
    chosen = fields or Fields()
    found = (text_of(record, chosen, where) for where, record in read_records(path, split=split))
    texts = list(islice((text for text in found if text), limit))
    if not texts:
        msg = f"{path} holds no text"
        raise DocumentMalformedError(msg)
    return texts


def read_records(path: Path, *, split: str | None = None) -> Iterator[tuple[str, Any]]:
    """Read where a record stands, in words, and what it is: any JSON value, or the text of a line.

    Raises:
        FileUnreadableError, DocumentMalformedError, ConfigurationError: see `read_texts`.
    """
    if path.is_dir():
        for number, record in enumerate(_saved_records(path, split), start=1):
            yield f"record {number} of {path}", record
        return
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix != ".gz"]
    form = suffixes[-1] if suffixes else ""
    if form not in _JSON_LINES | _PLAIN_TEXT:
        msg = (
            f"{path} ends in {form}, which is not read: give JSON lines (*.jsonl) with an object a line, such as "
            '{"text": "…"}, or a file with a text a line (*.txt), either also gzipped (*.gz), or a folder of `datasets`'
        )
        raise ConfigurationError(msg)
    with _open(path) as stream:
        try:
            if form in _JSON_LINES:
                yield from _json_records(stream, path)
            else:
                yield from ((f"line {number} of {path}", line.strip()) for number, line in enumerate(stream, start=1))
        except (OSError, UnicodeDecodeError, EOFError) as error:
            msg = f"{path} cannot be read as UTF-8 text: {error}"
            raise FileUnreadableError(msg) from error


def _open(path: Path) -> IO[str]:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        return path.open(encoding="utf-8")
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise FileUnreadableError(msg) from error


def _json_records(stream: Iterable[str], path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                msg = f"line {number} of {path} is not JSON: {error}"
                raise DocumentMalformedError(msg) from error
            yield f"line {number} of {path}", record


def _saved_records(path: Path, split: str | None) -> Iterable[Any]:
    import datasets  # noqa: PLC0415 - heavy, and not there on a bare CUDA machine

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        msg = f"{path} is not a folder of datasets.save_to_disk: {error}"
        raise FileUnreadableError(msg) from error
    if not isinstance(saved, datasets.DatasetDict):
        return saved  # type: ignore[no-any-return] # datasets is untyped
    chosen = split or (next(iter(saved)) if len(saved) == 1 else None)
    if chosen not in saved:
        msg = f"{path} holds the splits {', '.join(saved)}: choose one with --split"
        raise ConfigurationError(msg)
    return saved[chosen]  # type: ignore[no-any-return] # datasets is untyped


def text_of(record: Any, fields: Fields, where: str) -> Text:  # noqa: ANN401 - any JSON value
    """Return the text of a record, which may be empty.

    Raises:
        DocumentMalformedError, ConfigurationError: see `read_texts`.
    """
    if isinstance(record, str):
        return record.strip()
    if not isinstance(record, Mapping):
        msg = f"{where} is not an object with fields"
        raise DocumentMalformedError(msg)
    words = fields.tokens or (None if fields.text else next((name for name in _WORD_FIELDS if name in record), None))
    text = fields.text or (None if words else next((name for name in _TEXT_FIELDS if name in record), None))
    for named in filter(None, (words, text, fields.pair if words is None else None)):
        _require_field(record, named, where)
    if words is not None:
        found = record[words]
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            msg = f"{where}: {words!r} is not a list of words"
            raise DocumentMalformedError(msg)
        return found
    if text is None:
        known = ", ".join((*_TEXT_FIELDS, *_WORD_FIELDS))
        msg = f"{where} has none of the fields {known}, but {_names(record)}: name it with --text-field"
        raise ConfigurationError(msg)
    first, second = record.get(text), record.get(fields.pair) if fields.pair else ""
    if not isinstance(first, str) or not isinstance(second, str):
        msg = f"{where}: {text if not isinstance(first, str) else fields.pair!r} is not a text"
        raise DocumentMalformedError(msg)
    return (first, second) if fields.pair else first.strip()


def _require_field(record: Mapping[Any, Any], name: str, where: str) -> None:
    if name not in record:
        msg = f"{where} has no field {name!r}, but {_names(record)}"
        raise DocumentMalformedError(msg)


def _names(record: Mapping[Any, Any]) -> str:
    return first_names([str(name) for name in record], _MOST_NAMED) or "none at all"
