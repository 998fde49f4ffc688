"""A person at a terminal: types a command, answers what it asks."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 65_536


@dataclass
class Typed:
    """What a command printed, and its exit code."""

    output: str
    exit_code: int


def type_command(
    line: str, *, folder: Path, environment: Mapping[str, str], answers: Mapping[str, str], seconds: float = 120
) -> Typed:
    """Run a shell line at a terminal; each time its output ends with a key of `answers`, the value is typed."""
    controller, terminal = pty.openpty()
    command = subprocess.Popen(
        ["bash", "-c", line],
        cwd=folder, env=dict(environment), stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    output, answered = "", 0
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if not select.select([controller], [], [], 0.1)[0]:
                continue
            try:
                block = os.read(controller, _BLOCK_BYTES)
            except OSError:  # EIO: the command and its children have closed the terminal
                break
            output += block.decode(errors="replace")
            asked = next((answer for question, answer in answers.items() if output[answered:].endswith(question)), None)
            if asked is not None:
                answered = len(output)
                os.write(controller, asked.encode() + b"\n")
        return Typed(output, command.wait(max(0.1, deadline - time.monotonic())))
    finally:
        command.kill()
        command.wait()
        os.close(controller)
