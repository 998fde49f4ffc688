"""What both programs print: one result on stdout, for people or as JSON; notes and errors on stderr."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gramfuse_shared.errors import GramfuseError


class OutputFormat(StrEnum):
    """How a result is printed: for people, or as one JSON value for programs."""

    TEXT = "text"
    JSON = "json"


_UNBOUNDED: Final = 10_000  # columns

_format: OutputFormat = OutputFormat.TEXT


def choose_format(value: OutputFormat | None) -> OutputFormat | None:
    """Remember the format that an option asked for; an option that was not given changes nothing."""
    global _format  # noqa: PLW0603 - one process prints one result
    if value is not None:
        _format = value
    return value


def reset_format() -> None:
    """Begin a command line anew: text unless an option says otherwise."""
    choose_format(OutputFormat.TEXT)


def is_json() -> bool:
    """Tell whether the result is to be printed as JSON."""
    return _format is OutputFormat.JSON


FormatOption = Annotated[
    OutputFormat | None,
    typer.Option("--format", help="text for people, json for programs.", callback=choose_format, expose_value=False),
]


def console(*, stderr: bool = False) -> "Console":
    """Return a Rich console; plain text where the stream is no terminal."""
    from rich.console import Console  # noqa: PLC0415 - a start without output needs no Rich

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def show(result: Any, render: Callable[["Console"], None]) -> None:  # noqa: ANN401 - any JSON value or document
    """Print the command's result on stdout: one JSON value, or by `render` for people."""
    if is_json():
        sys.stdout.write(json.dumps(to_json(result), ensure_ascii=False, indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    else:
        render(console())


def note(text: str, *, always: bool = False) -> None:
    """Tell people something beside the result, on stderr; programs are not told, unless a person is to answer."""
    if always or not is_json():
        console(stderr=True).print(text, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Callable[..., None]:
    """Return a renderer of a plain table; columns whose number is in `right` are aligned right.

    Where the terminal is too narrow for it, each row becomes two lines: its first cell, and what the columns say of it.
    A file or a pipe has no width. A list of nothing is a line that says so.
    """

    def render(target: "Console") -> None:
        from rich.table import Table  # noqa: PLC0415 - only where something is printed

        if not rows and any(columns):
            target.print("nothing to list", markup=False)
            return
        grid = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
        for number, column in enumerate(columns):
            grid.add_column(column, justify="right" if number in right else "left", overflow="fold")
        for row in rows:
            grid.add_row(*(_plain(cell) for cell in row))
        natural = target.measure(grid, options=target.options.update(max_width=_UNBOUNDED)).maximum
        if not target.is_terminal:
            target.width = max(target.width, natural)
        if natural <= target.width or not any(columns):
            target.print(grid, soft_wrap=False)
        else:
            for row in rows:
                target.print(_stacked(columns, row), markup=False)

    return render


def _stacked(columns: Sequence[str], row: Sequence[str]) -> str:
    said = [f"{column} {cell}".strip() for column, cell in zip(columns[1:], row[1:], strict=True) if cell]
    return f"{row[0]}\n    {' · '.join(said)}"


def to_json(value: Any) -> Any:  # noqa: ANN401 - any JSON value or document
    """Turn documents of the contract, and containers of them, into JSON values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def tell_error(error: "GramfuseError", *, step: str | None = None) -> None:
    """Print an error as one line, and the next step where there is one, on stderr; one JSON value for programs."""
    if is_json():
        tell_failure(error.code, error.message, facts=to_json(error.facts), step=step)
        return
    sys.stderr.write(f"error[{error.code}]: {' '.join(error.message.split())}\n")
    if step is not None:
        sys.stderr.write(f"  next: {step}\n")
    sys.stderr.flush()


def tell_failure(code: str, message: str, *, facts: Mapping[str, Any] | None = None, step: str | None = None) -> None:
    """Print what went wrong as one JSON value on stderr."""
    document = {"code": code, "message": message, "facts": facts or {}, "next": step}
    sys.stderr.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")
    sys.stderr.flush()


def _plain(cell: str) -> str:
    from rich.markup import escape  # noqa: PLC0415 - only where something is printed

    return escape(cell)
