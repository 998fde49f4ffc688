"""What `audit` and `push` share on the command line: the options of the audit, and what they come to. No torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gramfuse.auditing.running import Auditing
from gramfuse.auditing.thresholds import Thresholds, read_thresholds
from gramfuse.measuring.texts import Fields, read_texts


class Effort(StrEnum):
    """How much an audit does: nothing that loads the model, nothing that takes long or stays at home, or all."""

    QUICK = "quick"
    BOUNDED = "bounded"
    ALL = "all"


PublicOption = Annotated[
    Path | None,
    typer.Option(
        "--public",
        help="Others' texts of a like kind: they make the membership attack stronger. Default: English texts from "
        "social media that come with gramfuse.",
    ),
]
AttacksOption = Annotated[
    Effort,
    typer.Option(
        "--attacks",
        help="quick: load no model; bounded: leave out what takes many minutes, and what stays at home; all. What was "
        "left out is told.",
    ),
]
ThresholdsOption = Annotated[
    Path | None,
    typer.Option(
        "--thresholds",
        envvar="GRAMFUSE_AUDIT_THRESHOLDS",
        help="A YAML file of what warns and what refuses; what it does not name keeps its default.",
    ),
]


def chosen_auditing(
    *,
    texts: Path | None,
    public: Path | None,
    fields: Fields,
    attacks: Effort,
    thresholds: Path | None,
    device: str,
) -> Auditing:
    """Read the files that the options name.

    Raises:
        ConfigurationError, FileUnreadableError, DocumentMalformedError: one of them.
    """
    return Auditing(
        texts=None if texts is None else read_texts(texts, fields),
        texts_file=None if texts is None else str(texts),
        public=None if public is None else read_texts(public, fields),
        effort=attacks.value,
        thresholds=Thresholds() if thresholds is None else read_thresholds(thresholds),
        device=device,
    )
