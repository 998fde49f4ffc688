"""What the commands of both programs have alike: help that loses nothing, common options, usage errors as JSON."""

import importlib
import json
from typing import Annotated

import pytest
import typer
import typer.core
import typer.main

from gramfuse.cli import main as client
from gramfuse_server import cli as server
from gramfuse_server import commands as server_commands
from gramfuse_shared.shell.commands import as_written, declare_format, finish, run_command

BOXES = str.maketrans("", "", "│╭╮╰╯─")
GROUP = (typer.core.TyperGroup,)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "4000")  # each option in one row


def leaves(command, path=()):
    """Yield every command and group, with its words."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))


def written():
    """Yield each command of both programs as its source has it: words that run it, and a click command."""
    for name, lazy in client.COMMANDS.items():
        group = typer.main.get_command(importlib.import_module(lazy.module).app)
        for path, command in leaves(group if lazy.command is None else group.commands[lazy.command]):
            yield ("gramfuse", name, *path), command
    for path, command in leaves(typer.main.get_command(server_commands.cli)):
        yield ("gramfuse-server", *path), command


WRITTEN = list(written())


def run(words):
    program, *arguments = words
    return (client if program == "gramfuse" else server).main(arguments)


def squeezed(text):
    return "".join(text.translate(BOXES).replace("·", "").split())  # between examples, which have lines of their own


@pytest.mark.parametrize(("words", "command"), WRITTEN, ids=[" ".join(words) for words, _ in WRITTEN])
def test_help_shows_every_word_that_was_written(words, command, capsys):
    assert run([*words, "--help"]) == 0
    shown = squeezed(capsys.readouterr().out)
    texts = [command.help, command.epilog, *(getattr(parameter, "help", None) for parameter in command.params)]
    for text in texts:
        for paragraph in (text or "").split("\n\n"):
            assert squeezed(paragraph) in shown
    if isinstance(command, GROUP):
        assert ("install-completion" in shown) is (len(words) == 1)  # of a program, not of its parts
        return
    assert "--format" in shown
    assert "Example" in shown
    assert squeezed(" ".join(words)) in shown[shown.index("Example") :]


@pytest.mark.parametrize("program", ["gramfuse", "gramfuse-server"])
def test_a_program_without_a_command_shows_its_help(program, capsys):
    assert run([program]) == 2
    captured = capsys.readouterr()
    assert "Usage" in captured.out + captured.err


def test_lines_of_a_paragraph_flow_and_indented_ones_stay():
    text = """First
    and on.

    Of a file
    such as:

        allow: [evaluate]
        models: [a]
    """
    shown = as_written(text)
    assert shown == "First and on.\n\nOf a file such as:\n\n    allow: \\[evaluate]\n    models: \\[a]"


def test_each_example_has_a_line_of_its_own_to_be_copied(capsys):
    assert as_written("Do it.\n\n    Examples: one --two\n    · three").endswith(
        "Examples:\n\n    one --two\n    three"
    )
    assert as_written("Do it.\n\nExample: one") == "Do it.\n\nExample: one"
    assert run(["gramfuse-server", "token", "list", "--help"]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    at = shown.index(" Examples:")
    assert shown[at + 2 : at + 4] == [
        "     gramfuse-server token list",
        "     gramfuse-server token list --format json",
    ]


def test_examples_behind_the_options_have_a_line_each(capsys):
    assert run(["gramfuse", "stats", "collect", "--help"]) == 0
    shown = capsys.readouterr().out
    examples = [line.strip() for line in shown[shown.index("Examples:") :].splitlines() if "gramfuse" in line]
    assert len(examples) > 1
    assert all(line.startswith("gramfuse ") and line.count("gramfuse ") == 1 for line in examples)


def small(seen):
    app = typer.Typer(add_completion=False)

    @app.command()
    def one(
        number: Annotated[int, typer.Argument(help="Any.")], format_: Annotated[str, typer.Option("--as")] = ""
    ) -> None:
        """Do one."""
        seen.append((number, format_))

    @app.command()
    def two() -> None:
        """Do two, and end otherwise."""
        raise typer.Exit(7)

    return finish(typer.main.get_command(app), declare_format)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["one", "--format", "json"], "Missing argument 'NUMBER'"),
        (["one", "x", "--format=json"], "Invalid value for 'NUMBER'"),
        (["one", "1", "--frob", "--format", "json"], "No such option: --frob"),
        (["three", "--format", "json"], "No such command 'three'"),
    ],
)
def test_wrong_usage_is_one_json_value_for_programs(arguments, says, capsys):
    assert run_command(small([]), arguments) == 2
    captured = capsys.readouterr()
    told = json.loads(captured.err)
    assert (told["code"], says in told["message"], captured.out) == ("usage", True, "")


def test_wrong_usage_is_told_to_people_in_words(capsys):
    assert run_command(small([]), ["one", "--frob"]) == 2
    assert "No such option: --frob" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--format", "json"]])
def test_a_command_line_runs_and_gives_the_commands_exit_code(extra):
    seen = []
    assert run_command(small(seen), ["one", "3", "--as", "x", *extra]) == 0
    assert seen == [(3, "x")]
    assert run_command(small(seen), ["two", *extra]) == 7
