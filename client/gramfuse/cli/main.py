"""The entry point `gramfuse`: the table of commands, each loaded when it is called."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
import typer.core
import typer.main

from gramfuse.cli import output
from gramfuse.extras import EXTRAS
from gramfuse_shared.errors import GramfuseError
from gramfuse_shared.extras import requiring_extras
from gramfuse_shared.imports import imports_kept
from gramfuse_shared.shell.commands import declare_format, finish, run_command
from gramfuse_shared.version import __version__


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command lives; `command` picks one of a module that holds several."""

    module: str
    summary: str
    command: str | None = None


COMMANDS: Final[Mapping[str, LazyCommand]] = MappingProxyType(
    {
        "login": LazyCommand("gramfuse.cli.account", "Sign in to a server with a token.", "login"),
        "whoami": LazyCommand("gramfuse.cli.account", "Show whose token is in use.", "whoami"),
        "env": LazyCommand("gramfuse.cli.account", "Show versions, paths and settings, secrets masked.", "env"),
        "identity": LazyCommand("gramfuse.cli.identity", "Your organization's key: make it, show its fingerprint."),
        "project": LazyCommand("gramfuse.cli.projects", "Create, join and look at projects; fetch the base model."),
        "roster": LazyCommand("gramfuse.cli.roster", "Compare and keep the members' identity keys."),
        "stats": LazyCommand("gramfuse.cli.stats", "Measure a model on your own texts."),
        "scales": LazyCommand(
            "gramfuse.cli.scales", "Measure a base model on public text, for all of a project alike."
        ),
        "dp": LazyCommand("gramfuse.cli.dp", "Measure with differential privacy; see what noise costs, what is spent."),
        "evaluate": LazyCommand("gramfuse.cli.evaluate", "Score a model on your own labelled texts."),
        "audit": LazyCommand("gramfuse.cli.audit", "Report what your statistics reveal and what would leave."),
        "contribution": LazyCommand("gramfuse.cli.contributions", "Push, list and withdraw contributions."),
        "job": LazyCommand("gramfuse.cli.jobs", "Submit, watch, cancel and retry merges."),
        "model": LazyCommand("gramfuse.cli.models", "List, pull, verify and delete merged models."),
        "request": LazyCommand("gramfuse.cli.requests", "Ask participants to evaluate or measure merged models."),
        "search": LazyCommand("gramfuse.cli.search", "Look for the merge that everybody's evaluations find best."),
        "participate": LazyCommand("gramfuse.cli.participate", "Answer what the server asks, from your own data."),
        "match": LazyCommand(
            "gramfuse.cli.match", "Tell whether a model's hidden units are in another model's order; align them."
        ),
        "merge": LazyCommand("gramfuse.cli.merge", "Merge local folders by a recipe, without a server."),
    }
)


class LazyGroup(typer.core.TyperGroup):
    """The root command: lists its commands from the table and imports one only when it is called."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - Typer's own attributes
        super().__init__(**attributes)
        for name, lazy in COMMANDS.items():
            self.add_command(typer.core.TyperCommand(name, help=lazy.summary), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - click moved between Typer's versions
        """Find the command that the arguments name, and load it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, (command if name is None else load_command(name)), rest


def load_command(name: str) -> Any:  # noqa: ANN401 - click moved between Typer's versions
    """Import a command of the table.

    Raises:
        ExtraMissingError: it needs a part of the distribution that is not installed.
    """
    lazy = COMMANDS[name]
    # once: by the second time something was computed, which would be kept too
    kept = nullcontext() if lazy.module in sys.modules else imports_kept()
    with requiring_extras(f"`gramfuse {name}`", EXTRAS), kept:
        module = importlib.import_module(lazy.module)
    command: Any = typer.main.get_command(module.app)
    if lazy.command is not None:
        command = command.commands[lazy.command]
    command.name = name
    return finish(command, declare_format, declare_connection)


app = typer.Typer(
    cls=LazyGroup,
    name="gramfuse",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=output.EXIT_CODES_TEXT,
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"gramfuse {__version__}")
        raise typer.Exit


def _choose_url(value: str | None) -> str | None:
    from gramfuse.cli import session  # noqa: PLC0415 - the option matters only where a command runs

    session.choose(url=value)
    return value


def _choose_http(value: bool | None) -> bool | None:
    from gramfuse.cli import session  # noqa: PLC0415 - as above

    session.choose(allow_http=value)
    return value


UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="The server, if not the one signed in to.", callback=_choose_url, expose_value=False, hidden=True
    ),
]
AllowHttpOption = Annotated[
    bool | None,
    typer.Option("--allow-http", help="As before the command.", callback=_choose_http, expose_value=False, hidden=True),
]


def declare_connection(_url: UrlOption = None, _allow_http: AllowHttpOption = None) -> None:
    """Declare the options of the connection, so that they may stand behind a command, too."""


@app.callback()
def root(
    _format: output.FormatOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="The server, if not the one signed in to. Like the next one, before the command or behind it.",
            envvar="GRAMFUSE_URL",
        ),
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Permit http:// to other machines: the token travels in the clear.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Several organizations, one language model, and no shared data.

    A first round, step by step:

        gramfuse login https://merge.example.org
        gramfuse project join acme.tweets
        gramfuse project base pull acme.tweets base
        gramfuse stats collect --model tuned --texts mine.jsonl --out statistics.safetensors
        gramfuse contribution push acme.tweets --model tuned --statistics statistics.safetensors
        gramfuse job wait acme.tweets regmean-1
        gramfuse model pull acme.tweets regmean-1 merged
    """
    from gramfuse.cli import session  # noqa: PLC0415 - the options matter only where a command runs

    session.begin()
    session.choose(url=url, allow_http=allow_http)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    command = finish(typer.main.get_command(app))
    try:
        code = run_command(command, list(sys.argv[1:] if arguments is None else arguments))
    except GramfuseError as error:
        return output.report_error(error)
    except KeyboardInterrupt:
        code = output.EXIT_INTERRUPTED
    if code == output.EXIT_INTERRUPTED:
        output.note("interrupted; running the same command again resumes")
    return code


def run() -> None:
    """Run the command line of this process."""
    sys.exit(main())
