"""What every command of both programs is given: the common options, and help that is shown as it was written.

Typer reads help as Rich's markup, which swallows what stands in brackets, and breaks lines where the source did. Here
help is text: brackets stay, and the lines of a paragraph flow, unless they are indented, as commands and files are. Of
examples, which the source has in a sentence (`Examples: one · another`), each has a line of its own, to be copied.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import typer
import typer.core
import typer.main

from gramfuse_shared.shell import printing

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__bases__[0]
"""click's, of whichever click Typer uses: its own, or another one."""
_INDENT: Final = "    "
_EXAMPLES: Final = re.compile(r"Examples: (.+)")
_BETWEEN_EXAMPLES: Final = " · "


def finish(command: Any, *declarations: Callable[..., None]) -> Any:  # noqa: ANN401 - click moved between Typer's versions
    """Give a command and those below it literal help, and the options of all declarations that they lack.

    Args:
        command: as `typer.main.get_command` makes it.
        declarations: functions whose parameters are the options, declared as those of any command.
    """
    command.help, command.epilog = as_written(command.help), as_written(command.epilog, docstring=False)
    command.short_help = as_written(command.short_help)
    for child in getattr(command, "commands", {}).values():
        finish(child, *declarations)
    if not isinstance(command, typer.core.TyperGroup):
        taken = {name for parameter in command.params for name in parameter.opts}
        command.params += [one for one in _options(declarations) if taken.isdisjoint(one.opts)]
    for parameter in command.params:
        parameter.help = as_written(getattr(parameter, "help", None))
        if isinstance(parameter, typer.core.TyperArgument) and parameter.metavar is None:
            parameter.metavar = str(parameter.name).upper()
    return command


def as_written(text: str | None, *, docstring: bool = True) -> str | None:
    """Return help as Typer shows it literally, paragraphs flowing.

    What is no docstring has no indentation of its code's: cleaned as one, a text whose last paragraphs are all indented
    would lose what makes their lines stay.
    """
    if not text:
        return text
    clean = inspect.cleandoc(text) if docstring else text.strip()
    flowing = "\n\n".join(_flowing(paragraph) for paragraph in clean.split("\n\n"))
    if "[" not in flowing:
        return flowing
    from rich.markup import escape  # noqa: PLC0415 - a start that shows no help needs no Rich

    return escape(flowing)


def declare_format(_format: printing.FormatOption = None) -> None:
    """Declare `--format`, by the same means as any other option."""


def run_command(command: Any, arguments: Sequence[str]) -> int:  # noqa: ANN401 - as above
    """Run one command line; return its exit code. Wrong usage is a box for people and a JSON value for programs."""
    printing.reset_format()
    if not _asks_for_json(arguments):
        try:
            command.main(args=list(arguments))
        except SystemExit as request:
            return _exit_code(request)
        return 0
    try:
        ended = command.main(args=list(arguments), standalone_mode=False)
    except _USAGE_ERROR as error:
        said: Any = error  # its class is click's, wherever Typer has that from
        printing.tell_failure("usage", " ".join(str(said.format_message()).split()), step="see --help")
        return EXIT_USAGE
    except typer.Abort:
        return EXIT_ERROR
    return ended if isinstance(ended, int) else 0


def _options(declarations: Sequence[Callable[..., None]]) -> Iterator[Any]:
    for declaration in declarations:
        app = typer.Typer(add_completion=False)
        app.command()(declaration)
        for option in typer.main.get_command(app).params:
            if "--help" not in option.opts:
                yield option


def _flowing(paragraph: str) -> str:
    if all(line.startswith(_INDENT) for line in paragraph.splitlines()):
        return paragraph.rstrip()
    text = " ".join(paragraph.split())
    examples = _EXAMPLES.fullmatch(text)
    if examples is None or _BETWEEN_EXAMPLES not in text:
        return text
    lines = "\n".join(f"{_INDENT}{example}" for example in examples[1].split(_BETWEEN_EXAMPLES))
    return f"\nExamples:\n\n{lines}"  # begun by an empty line, or Typer takes away the indent behind a first line


def _asks_for_json(arguments: Sequence[str]) -> bool:
    return "--format=json" in arguments or ("--format", "json") in pairwise(arguments)


def _exit_code(request: SystemExit) -> int:
    if request.code is None:
        return 0
    return request.code if isinstance(request.code, int) else EXIT_ERROR
