"""Server-sent events, out of the lines of a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

COMMENT: Final = "comment"


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event."""

    kind: str
    text: str


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Parse a stream of server-sent events; a comment, a sign of life, is one of the kind `comment`.

    Ids and retry hints are passed over.
    """
    kind, texts = "message", list[str]()
    for line in lines:
        if line.startswith(":"):
            yield Event(COMMENT, line[1:].removeprefix(" "))
            continue
        if not line:
            if texts:
                yield Event(kind, "\n".join(texts))
            kind, texts = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            texts.append(value)
