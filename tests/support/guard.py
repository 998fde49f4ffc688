"""Ends processes that this one started and did not live to stop, SIGKILL included.

The guard is a process of its own that reads from a pipe whom it watches. When the pipe ends, whoever wrote into it is
gone, however it went: the guard then signals all that it still watches. It imports nothing of ours: it is this file.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
from typing import Final

_LOCK: Final = threading.Lock()
_guards: Final[dict[int, subprocess.Popen[str]]] = {}
"""By the process that started it: a forked child shares no pipe with its parent's guard."""


def watch(pid: int, *, end_with: signal.Signals = signal.SIGKILL) -> None:
    """Have a process signalled when this one is gone."""
    with _LOCK:
        if os.getpid() not in _guards:
            _guards[os.getpid()] = _start()
    _tell(f"{pid} {int(end_with)}")


def forget(pid: int) -> None:
    """Let go of a process that has ended, before its number is another's."""
    _tell(f"{pid} 0")


def _tell(line: str) -> None:
    with _LOCK:
        guard = _guards.get(os.getpid())
        if guard is not None and guard.stdin is not None:
            guard.stdin.write(line + "\n")
            guard.stdin.flush()


def _start() -> subprocess.Popen[str]:
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # whoever reads ours need not wait for its end
        text=True,
        start_new_session=True,  # Ctrl-C at the terminal is not for it
    )
    atexit.register(_dismiss, guard)
    return guard


def _dismiss(guard: subprocess.Popen[str]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait()


def _guard() -> None:
    watched: dict[int, int] = {}
    for line in sys.stdin:
        pid, number = map(int, line.split())
        watched.pop(pid, None)
        if number:
            watched[pid] = number
    for pid, number in watched.items():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    _guard()
