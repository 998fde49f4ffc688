"""Compares how many rows statistics hold with how many the texts bring that are said to have been measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gramfuse.auditing.report import NotRun
from gramfuse.measuring.batching import TokenizedText
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.errors import ConfigurationError

RowsOf = Literal["text", "token"]


@dataclass(slots=True)
class RowsRead:
    """What a layer read of some texts: whether it was always a row per token, or always one per text."""

    kinds: set[RowsOf] = field(default_factory=lambda: {"text", "token"})

    def add(self, rows: int, text: TokenizedText) -> None:
        """Take the rows of one text."""
        if rows != 1:
            self.kinds.discard("text")
        if rows != len(text.ids):
            self.kinds.discard("token")


def compare_rows(
    taps: Mapping[str, TapInfo], read: Mapping[str, RowsRead], texts: Sequence[TokenizedText]
) -> NotRun | None:
    """Require that statistics can be of these texts, by their rows; return what is to be told where they may not be.

    A tap agrees whose distinct rows are a multiple of the texts' own: layers may run several times. One that agrees is
    enough, since others may read what is no text's. Fewer rows a token were measured of texts that were cut off.

    Args:
        taps: attacked taps, by a layer that reads each.
        read: how these layers read texts.
        texts: all that were given.

    Raises:
        ConfigurationError: these texts have fewer rows than were measured, or more texts were given than measured.
    """
    distinct = {text.content_hash(): len(text.ids) for text in texts}
    expected: dict[RowsOf, int] = {"text": len(distinct), "token": sum(distinct.values())}
    compared = [
        (tap, kind, tap.distinct_rows, expected[kind])
        for layer, tap in taps.items()
        if layer in read
        for kind in read[layer].kinds
    ]
    if not compared or any(held % own == 0 for _, _, held, own in compared):
        return None
    tap, kind, held, own = next((one for one in compared if one[1] == "text"), compared[0])
    counted = f"tap {tap.name} holds {held:,} distinct rows, and these texts have {own:,}, one a {kind}"
    if kind == "text" or held > own:
        msg = f"the statistics were not measured on these texts, all of them and no others: {counted}"
        raise ConfigurationError(msg, tap=tap.name)
    why = (
        f"{counted}: unless texts were cut off (--max-length), others were measured, and what is said of these is void"
    )
    return NotRun(what="whether these are the texts that were measured", because=why)
