"""Progress bars with rate and estimate, on stderr; none where the result is for programs.

A bar begins with the first step, not before: what is refused at once leaves no empty bar behind.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import rich.progress as rich_progress
from rich.text import Text

from gramfuse.cli import output
from gramfuse.progress import OnProgress, Progress, Stage
from gramfuse_shared.contract.http_api import Job, JobLayers
from gramfuse_shared.units import format_bytes

if TYPE_CHECKING:
    from gramfuse.measuring.inference import Progress as Measured

_TITLES: Final[dict[Stage, str]] = {"digest": "Reading", "upload": "Sending", "download": "Fetching"}


@contextlib.contextmanager
def transfer() -> Iterator[OnProgress]:
    """Show a bar per stage of a transfer: bytes, rate, time left."""
    with _bytes_bars() as bars:
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

        yield show


@contextlib.contextmanager
def reading(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show the bar of work on local files: bytes read of all, rate, time left."""
    with _bytes_bars() as bars:
        task = bars.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bars.start()
            bars.update(task, completed=done, total=total)

        yield show


@contextlib.contextmanager
def measurement(title: str = "Measuring") -> Iterator[Callable[["Measured"], None]]:
    """Show the bar of a pass over texts: share of all tokens, tokens per second, time left. transformers shows none."""
    import transformers  # noqa: F401, PLC0415 - who measures has it

    _without_bars_of_transformers()
    columns = (
        rich_progress.TextColumn(title),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.percentage:>3.0f} %"),
        _TokenRate(),
        rich_progress.TimeRemainingColumn(),
    )
    with _bars(*columns) as bars:
        task = bars.add_task("", total=None)

        def show(measured: "Measured") -> None:
            bars.start()
            bars.update(task, total=measured.total, completed=measured.tokens)

        yield show


@contextlib.contextmanager
def job() -> Iterator[Callable[[Job], None]]:
    """Show a job's bar: state, stage, shards, the server's rate and estimate."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[detail]}"),
    )
    with _bars(*columns) as bars:
        task = bars.add_task("", total=1.0, detail="")

        def show(seen: Job) -> None:
            bars.start()
            bars.update(task, description=seen.id, completed=seen.progress, detail=describe_job(seen))

        yield show


@contextlib.contextmanager
def steps(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show the bar of a loop of requests and jobs: the share that is done, and what is waited for."""
    columns = (
        rich_progress.TextColumn(title),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[detail]}"),
    )
    with _bars(*columns) as bars:
        task = bars.add_task("", total=1.0, detail="")

        def show(share: float, detail: str) -> None:
            _without_bars_of_transformers()
            bars.start()
            bars.update(task, completed=share, detail=detail)

        yield show


def _without_bars_of_transformers() -> None:
    """Have transformers, where it is loaded, show no bars of its own among these."""
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 - it is loaded already

        disable_progress_bar()  # type: ignore[no-untyped-call] # transformers' own


def describe_job(seen: Job) -> str:
    """Write a job's state, shards, rate and estimate in a few words."""
    words = [seen.state if seen.stage in {"", seen.state} else f"{seen.state}: {seen.stage}"]
    if seen.total_tasks:
        words.append(f"{seen.done_tasks} of {seen.total_tasks} shard{'' if seen.total_tasks == 1 else 's'}")
    if seen.state == "running" and seen.rate:
        words.append(f"{format_bytes(seen.rate)}/s")
    if seen.state == "running" and seen.estimate_seconds is not None:
        words.append(f"{seen.estimate_seconds:.0f} s left")
    if seen.attempt > 1:
        words.append(f"attempt {seen.attempt}")
    return " · ".join(words)


def describe_layers(seen: Job, layers: JobLayers) -> str:
    """Write how many linear layers of a job are solved, and where to read why the others are not."""
    counts = f"{layers.solved} of {layers.solved + layers.averaged} linear layers solved"
    if not layers.averaged:
        return counts
    where = f"gramfuse job logs {seen.project} {seen.id}"
    return f"{counts}, {layers.averaged} averaged for want of statistics (`{where}` says whose)"


class _TokenRate(rich_progress.ProgressColumn):
    """Tokens per second."""

    def render(self, task: rich_progress.Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} tokens/s")


@contextlib.contextmanager
def _bars(*columns: rich_progress.ProgressColumn) -> Iterator[rich_progress.Progress]:
    bars = rich_progress.Progress(*columns, console=output.console(stderr=True), disable=output.is_json())
    try:
        yield bars
    finally:
        if bars.live.is_started:  # else Rich writes an empty line where there is no terminal
            bars.stop()


def _bytes_bars() -> contextlib.AbstractContextManager[rich_progress.Progress]:
    return _bars(
        rich_progress.TextColumn("{task.description:<9}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
