"""The README's commands exist: make's targets in a fresh clone, and every command and option of ours."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gramfuse.cli.main import main
from gramfuse_server.cli import main as server_main
from support.checkout import REPOSITORY, clone, make_environment

DOCUMENTS = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "CONTRIBUTING.md")
BLOCK = re.compile(r"^```(?:sh|console|shell|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = ("gramfuse", "gramfuse-server")


def _commands(document: Path) -> list[list[str]]:
    """Every command line of a document's shell blocks, without prompts, comments and variables before it."""
    found = []
    for block in BLOCK.findall(document.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def _ours() -> list[list[str]]:
    return [words for document in DOCUMENTS for words in _commands(document) if words[0] in PROGRAMS]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("clone") / "gramfuse")


def test_the_readme_promises_two_commands_and_make_knows_every_target(checkout):
    promised = [words for document in DOCUMENTS for words in _commands(document) if words[0] == "make"]
    assert ["make", "demo"] in promised
    assert ["make", "test"] in promised
    for words in {tuple(words) for words in promised}:
        planned = subprocess.run(
            ["make", "-n", *words[1:]],
            cwd=checkout,
            env=make_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert planned.returncode == 0, f"{shlex.join(words)}: {planned.stderr}"


def test_make_test_runs_every_suite_and_installs_nothing_that_is_installed(checkout):
    planned = subprocess.run(
        ["make", "-n", "test"], cwd=checkout, env=make_environment(), capture_output=True, text=True, check=True
    ).stdout
    assert "pip install" not in planned
    for suite in ("tests/unit", "tests/property", "tests/golden", "tests/integration", "tests/system"):
        assert suite in planned
        assert (checkout / suite).is_dir()


def test_every_documented_command_has_its_options(capsys, monkeypatch):
    """`COMMAND --help` knows the command, and names each option that a document uses."""
    monkeypatch.setenv("COLUMNS", "300")  # or Rich would cut options short
    wanted: dict[tuple[str, ...], set[str]] = {}
    for words in _ours():
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        wanted.setdefault(_command_path(words), set()).update(options)
    assert wanted
    for path, options in wanted.items():
        assert _help(path) == 0, shlex.join(path)
        known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        assert options <= known | {"--help"}, f"{shlex.join(path)}: {options - known}"


def _help(path: tuple[str, ...]) -> int:
    """Run `COMMAND --help` in this process: a new one for each would take half a minute."""
    if path[0] == "gramfuse":
        return main([*path[1:], "--help"])
    return server_main([*path[1:], "--help"])


def _command_path(words: list[str]) -> tuple[str, ...]:
    """The program and its subcommands: up to two words that look like commands, before options and arguments."""
    groups = {
        "project": 2,
        "stats": 2,
        "contribution": 2,
        "job": 2,
        "model": 2,
        "request": 2,
        "search": 2,
        "db": 2,
        "token": 2,
        "org": 2,
        "audit": 1,
        "key": 2,
    }
    if len(words) < 2 or words[1].startswith("-"):
        return (words[0],)
    depth = groups.get(words[1], 1)
    if words[1:3] == ["project", "base"]:
        depth = 3
    if words[0] == "gramfuse-server" and words[1] == "audit":
        depth = 2
    return tuple(words[: depth + 1])


def test_the_python_example_of_the_readme_compiles_and_names_what_exists():
    import gramfuse  # noqa: PLC0415

    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for name in set(re.findall(r"\bgramfuse\.(\w+)", block)):
            assert hasattr(gramfuse, name), name
