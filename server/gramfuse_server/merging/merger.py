"""The three steps of a merge: plan, one task per shard, publish. Each is safe to repeat and to race. Imports torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse_server.blobs import Blobs
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, reading, transaction
from gramfuse_server.keeping import keep
from gramfuse_server.merging import attempts, publication
from gramfuse_server.merging.attempts import Attempt, LayerSize, PlanSize, TaskSize
from gramfuse_server.merging.inputs import load_inputs, open_base, open_members, open_origin
from gramfuse_server.merging.summing import put_sums
from gramfuse_server.metrics.work import WorkMetrics
from gramfuse_server.requests.kept_words import forget_words
from gramfuse_shared.errors import CancelledError, GramfuseError
from gramfuse_shared.merging.execution import DeviceChoice, choose_device, execute_task

LOOK_SECONDS: Final = 0.5
"""Between two looks, within a task, at whether the job still runs; progress is written at the same time."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Merger:
    """Carries out attempts; `worker` is its name, `scratch` a local folder for the shard that is being written."""

    database: Database
    blobs: Blobs
    key: Ed25519PrivateKey
    scratch: Path
    worker: str
    device: DeviceChoice
    clock: Clock
    metrics: WorkMetrics = field(default_factory=WorkMetrics)

    def plan(self, attempt: Attempt, *, shard_bytes: int) -> int | None:
        """Plan the attempt and note its tasks; return their number, None where the attempt may not go on."""
        with reading(self.database) as session:
            if not attempts.is_running(session, attempt):
                return None
            inputs = load_inputs(session, attempt, shard_bytes=shard_bytes)
        if inputs.summed is not None:
            put_sums(inputs.summed, attempt, self.blobs, self.scratch)
        plan = inputs.plan
        layers = plan.layers
        size = PlanSize(
            tasks=tuple(TaskSize(task.file_name, task.input_bytes) for task in plan.tasks),
            layers=None if layers is None else LayerSize(layers.solved, layers.averaged, str(layers)),
        )
        with transaction(self.database) as session:
            goes_on = attempts.begin(session, attempt, size, worker=self.worker, now=self.clock())
        _log.info("planned", tasks=len(plan.tasks), goes_on=goes_on)
        return len(plan.tasks) if goes_on else None

    def execute(self, attempt: Attempt, number: int, *, shard_bytes: int) -> None:
        """Compute one shard, unless that is done already or the attempt may not go on."""
        with transaction(self.database) as session:
            if not attempts.begin_task(session, attempt, number, worker=self.worker, now=self.clock()):
                return
        with reading(self.database) as session:
            inputs = load_inputs(session, attempt, shard_bytes=shard_bytes)
        watch = _Watch(self, attempt, number)
        began = time.monotonic()
        self.scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.scratch, prefix="shard-") as folder:
            target = Path(folder) / inputs.plan.tasks[number].file_name
            try:
                base = open_base(self.blobs, inputs.base)
                result = execute_task(
                    inputs.plan,
                    number,
                    open_members(self.blobs, inputs, base),
                    open_origin(self.blobs, inputs, base),
                    target,
                    device=choose_device(self.device),
                    on_progress=watch.count,
                    is_cancelled=watch.is_cancelled,
                )
            except CancelledError:
                _log.info("task stopped")
                self.metrics.shard_stopped()
                return
            keep(self.database, self.blobs, {result.file.sha256: target}, clock=self.clock)
        seconds = time.monotonic() - began
        with transaction(self.database) as session:
            attempts.finish_task(
                session,
                attempt,
                number,
                file=result.file,
                diagnostics=result.diagnostics,
                seconds=seconds,
                worker=self.worker,
                now=self.clock(),
            )
        self.metrics.shard_finished(seconds=seconds, read_bytes=watch.done_bytes, written_bytes=result.file.bytes)
        _log.info("task finished", seconds=round(seconds, 3), bytes=result.file.bytes)

    def is_complete(self, attempt: Attempt) -> bool | None:
        """Tell whether all tasks have succeeded; None where the attempt may not go on."""
        with reading(self.database) as session:
            if not attempts.is_running(session, attempt):
                return None
            return publication.finished_tasks(session, attempt) is not None

    def publish(self, attempt: Attempt, *, shard_bytes: int) -> bool:
        """Publish the model; False where the attempt may not go on, or has been published."""
        with reading(self.database) as session:
            if not attempts.is_running(session, attempt):
                return False
            inputs = load_inputs(session, attempt, shard_bytes=shard_bytes)
            tasks = publication.finished_tasks(session, attempt)
        if tasks is None:
            return False
        prepared = publication.prepare(inputs, attempt, tasks, blobs=self.blobs, key=self.key, now=self.clock())
        keep(self.database, self.blobs, prepared.contents, clock=self.clock)
        with transaction(self.database) as session:
            published = publication.publish(session, attempt, prepared, now=self.clock())
            if published and inputs.summed is not None:
                forget_words(session, attempt.project, inputs.summed.request, now=self.clock())
        if published:
            self.metrics.model_published()
        _log.info("published" if published else "not published")
        return published

    def fail(self, attempt: Attempt, error: GramfuseError, *, task: int | None = None) -> None:
        """End the attempt with an error's code and message, unless it came from a task that another has taken over."""
        with transaction(self.database) as session:
            if task is not None and attempts.is_out_of_hands(session, attempt, task, self.worker):
                return
            failed = attempts.fail(session, attempt, code=error.code, message=error.message, now=self.clock())
        if failed:
            self.metrics.attempt_failed(error.code)
            _log.warning("attempt failed", code=error.code)


@dataclass(slots=True)
class _Watch:
    """Writes a task's progress and looks for cancellation, both at most every `LOOK_SECONDS`."""

    merger: Merger
    attempt: Attempt
    number: int
    monotonic: Callable[[], float] = time.monotonic
    done_bytes: int = 0
    stopped: bool = False
    looked: float = field(init=False)

    def __post_init__(self) -> None:
        self.looked = self.monotonic()

    def count(self, read_bytes: int) -> None:
        """Add what the engine has read."""
        self.done_bytes += read_bytes

    def is_cancelled(self) -> bool:
        """Tell whether the task must stop."""
        now = self.monotonic()
        if now - self.looked >= LOOK_SECONDS and not self.stopped:
            self.looked = now
            with transaction(self.merger.database) as session:
                self.stopped = not attempts.progress_task(
                    session,
                    self.attempt,
                    self.number,
                    done_bytes=self.done_bytes,
                    worker=self.merger.worker,
                    now=self.merger.clock(),
                )
        return self.stopped
