"""Arguments that commands of several modules take."""

from typing import Annotated

import typer

ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="acme.tweets, or tweets where only one project is called so.")
]
