"""Start, follow and stop other programs, so that none outlives the demo whatever ends it."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self, TextIO

from rich.console import Console

STOPPING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_SECONDS: Final = 15.0  # between asking a program to stop and killing it
TAIL_LINES: Final = 20

console = Console(highlight=False, soft_wrap=True)


class CommandFailedError(Exception):
    """A command ended with another exit code than 0, or too early."""


@dataclass(frozen=True, slots=True)
class Shell:
    """A user at a prompt: the folder they are in and their environment."""

    name: str
    folder: Path
    environment: Mapping[str, str]

    def show(self, command: Sequence[str], *, suffix: str = "") -> None:
        """Print a command as this user would type it."""
        console.print(f"[bold cyan]{self.name}$[/] ", end="")
        console.print(shlex.join(command) + suffix, markup=False)


@dataclass(frozen=True, slots=True)
class Command:
    """A command that somebody is to run. `typed` is its standard input.

    What it writes to standard error is printed if it is to be `heard`, otherwise logged; None: if it runs alone.
    """

    shell: Shell
    words: Sequence[str]
    log: Path
    typed: str = ""
    heard: bool | None = None


@dataclass(slots=True)
class Processes:
    """The running children. Leaving the block stops them, each with everything that it started.

    Every child leads a session of its own. So Ctrl-C at the terminal reaches the demo alone, which then stops the
    children in order, and one signal to a child's group reaches its descendants.
    """

    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _exit_by_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _signals_postponed():
            for process in reversed(self._running):
                _stop(process)
            self._running.clear()

    def run(self, *commands: Command) -> None:
        """Run commands to their end. One has the terminal to itself; the output of several is printed when they end.

        Raises:
            CommandFailedError: one of them failed.
        """
        if len(commands) == 1:
            self._end(self._begin(commands[0], stdout=None, alone=True), commands[0])
        else:
            for output in self.read(*commands):
                console.print(output, end="", markup=False)

    def read(self, *commands: Command) -> list[str]:
        """Run commands at the same time, and return what each wrote to standard output.

        Raises:
            CommandFailedError: one of them failed.
        """
        running = [self._begin(command, stdout=subprocess.PIPE, alone=len(commands) == 1) for command in commands]
        return [self._end(process, command) for process, command in zip(running, commands, strict=True)]

    def start(self, command: Command, *, inherited: Sequence[int] = ()) -> subprocess.Popen[str]:
        """Start a program that runs beside the others, until it ends or the block is left, its output in its log."""
        command.shell.show(command.words, suffix=" &")
        with command.log.open("a", encoding="utf-8") as log:
            return self._spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, inherited=inherited)

    def wait_for(self, started: subprocess.Popen[str], command: Command) -> None:
        """Wait for the end of a program that was started.

        Raises:
            CommandFailedError: it failed.
        """
        command.shell.show(["wait"])
        self._end(started, command)

    def release(self) -> None:
        """Let the running programs live on after the block."""
        self._running.clear()

    def _begin(self, command: Command, *, stdout: int | None, alone: bool) -> subprocess.Popen[str]:
        command.shell.show(command.words)
        with command.log.open("a", encoding="utf-8") as log:
            heard = alone if command.heard is None else command.heard
            return self._spawn(command, stdin=subprocess.PIPE, stdout=stdout, stderr=None if heard else log)

    def _end(self, process: subprocess.Popen[str], command: Command) -> str:
        output, _ = process.communicate(command.typed)
        self._running.remove(process)
        if process.returncode != 0:
            raise CommandFailedError(_describe_end(process, command.log))
        return output or ""

    def _spawn(
        self,
        command: Command,
        *,
        stdin: int,
        stdout: TextIO | int | None,
        stderr: TextIO | None,
        inherited: Sequence[int] = (),
    ) -> subprocess.Popen[str]:
        sys.stdout.flush()
        with _signals_postponed():  # or a signal might arrive when the child runs and nobody knows of it
            process = subprocess.Popen(  # noqa: S603 - the demo's own commands
                command.words,
                cwd=command.shell.folder,
                env=dict(command.shell.environment),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
                pass_fds=tuple(inherited),
            )
            self._running.append(process)
        return process


def require_running(process: subprocess.Popen[str], *, log: Path) -> None:
    """Require that a started program has not ended.

    Raises:
        CommandFailedError: it has.
    """
    if process.poll() is not None:
        raise CommandFailedError(_describe_end(process, log))


def _stop(process: subprocess.Popen[str]) -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        console.print(f"[yellow]{_command_line(process)} does not stop; killing it[/]")
    _signal_group(process, signal.SIGKILL)  # whatever of its group is left
    process.wait()


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # nobody of the group is left


def _describe_end(process: subprocess.Popen[str], log: Path) -> str:
    """What ended, how, and the last lines of its log."""
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:] if log.exists() else []
    lines = [f"{_command_line(process)} ended with exit code {process.returncode}"]
    return "\n".join([*lines, f"the end of {log}:", *tail] if tail else lines)


def _command_line(process: subprocess.Popen[str]) -> str:
    return shlex.join(map(str, process.args)) if isinstance(process.args, list) else str(process.args)


def _exit_by_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _signals_postponed() -> Iterator[None]:
    """Note stopping signals that arrive meanwhile, and let them take effect at the end."""
    arrived: list[int] = []
    previous = {known: signal.signal(known, lambda number, _: arrived.append(number)) for known in STOPPING_SIGNALS}
    try:
        yield
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)
    for number in arrived:
        signal.raise_signal(number)
