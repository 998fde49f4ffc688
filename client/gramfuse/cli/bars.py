"""Progress bars with rate and estimate, on stderr; none where the result is for programs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import rich.progress as rich_progress

from gramfuse.cli import output
from gramfuse.progress import OnProgress, Progress, Stage
from gramfuse.units import format_bytes
from gramfuse_shared.contract.http_api import Job

_TITLES: Final[dict[Stage, str]] = {"digest": "Reading", "upload": "Sending", "download": "Fetching"}


@contextlib.contextmanager
def transfer() -> Iterator[OnProgress]:
    """Show a bar per stage of a transfer: bytes, rate, time left. It begins with the first step, not before."""
    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description:<9}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
        console=output.console(stderr=True),
        disable=output.is_json(),
    )
    tasks: dict[Stage, rich_progress.TaskID] = {}

    def show(progress: Progress) -> None:
        if progress.stage == "check":
            bars.stop()
            output.note("a worker of the server checks what was sent …")
            return
        if progress.stage not in tasks:
            bars.start()
            # what earlier runs sent is there from the start and is not this run's rate
            tasks[progress.stage] = bars.add_task(
                _TITLES[progress.stage], total=progress.total_bytes, completed=progress.done_bytes
            )
        bars.update(tasks[progress.stage], completed=progress.done_bytes)

    try:
        yield show
    finally:
        bars.stop()


@contextlib.contextmanager
def job() -> Iterator[Callable[[Job], None]]:
    """Show a job's bar: state, stage, tasks, the server's rate and estimate."""
    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[detail]}"),
        console=output.console(stderr=True),
        disable=output.is_json(),
    )
    task = bars.add_task("", total=1.0, detail="")

    def show(seen: Job) -> None:
        bars.start()
        bars.update(task, description=seen.id, completed=seen.progress, detail=describe_job(seen))

    try:
        yield show
    finally:
        bars.stop()


def describe_job(seen: Job) -> str:
    """Write a job's state, tasks, rate and estimate in a few words."""
    words = [seen.state if seen.stage in {"", seen.state} else f"{seen.state}: {seen.stage}"]
    if seen.total_tasks:
        words.append(f"{seen.done_tasks}/{seen.total_tasks} tasks")
    if seen.state == "running" and seen.rate:
        words.append(f"{format_bytes(seen.rate)}/s")
    if seen.state == "running" and seen.estimate_seconds is not None:
        words.append(f"{seen.estimate_seconds:.0f} s left")
    if seen.attempt > 1:
        words.append(f"attempt {seen.attempt}")
    return " · ".join(words)
