"""A process that is killed leaves none behind that its guard watches."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from support.checkout import REPOSITORY
from support.deployment import wait_until

STARTER = """
import subprocess, sys, time
from support import guard
watched, forgotten = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
for process in (watched, forgotten):
    guard.watch(process.pid)
guard.forget(forgotten.pid)
print(watched.pid, forgotten.pid, flush=True)
time.sleep(60)
"""


POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path.append(REPOSITORY)
from benchmarks.paper.parents import end_with_parent
if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
"""


def runs(pid: int) -> bool:
    """Whether it runs: whoever ended and was not waited for is there, and does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_killed_process_started_ends_unless_it_was_forgotten():
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=REPOSITORY / "tests", stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    watched, forgotten = map(int, starter.stdout.readline().split())
    try:
        assert runs(watched)
        with starter:
            starter.kill()
        wait_until(lambda: not runs(watched), seconds=10, what="the watched process's end")
        assert runs(forgotten)
    finally:
        os.kill(forgotten, signal.SIGKILL)


def test_a_pool_whose_owner_was_killed_ends(tmp_path):
    program = tmp_path / "owner.py"  # a spawned process reads its main module again
    program.write_text(POOL.replace("REPOSITORY", repr(str(REPOSITORY))))
    owner = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    assert runs(worker)
    owner.kill()
    owner.stdout.close()
    owner.wait(10)
    wait_until(lambda: not runs(worker), seconds=10, what="the pool's end")
