"""What `audit` and `push` share on the command line: the options of the audit. Needs no torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
