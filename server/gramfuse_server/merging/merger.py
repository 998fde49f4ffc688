"""The three steps of a merge: plan, one task per shard, publish. Each is safe to repeat and to race. Imports torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, is_outage, reading, transaction
from gramfuse_server.keeping import keep
from gramfuse_server.merging import attempts, publication
from gramfuse_server.merging.attempts import Attempt, LayerSize, PlanSize, TaskSize
from gramfuse_server.merging.inputs import MergeInputs, load_inputs, open_base, open_members, open_origin
from gramfuse_server.merging.summing import put_sums
from gramfuse_server.metrics.work import WorkMetrics
from gramfuse_server.patience import Patience
from gramfuse_server.requests.kept_words import forget_words
from gramfuse_shared.contract.operators import Priority
from gramfuse_shared.errors import CancelledError, FileUnwritableError, GramfuseError
from gramfuse_shared.merging.execution import DeviceChoice, choose_device, execute_task

LOOK_SECONDS: Final = 0.5
"""Between two looks, within a task, at whether the job still runs; progress is written at the same time."""

T = TypeVar("T")

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
    patience: Patience = field(default_factory=Patience)

    def plan(self, attempt: Attempt, *, shard_bytes: int) -> int | None:
        """Plan the attempt and note its tasks; return their number, None where the attempt may not go on."""
        inputs = self._inputs(attempt, shard_bytes) if self._begin_step(attempt) else None
        if inputs is None:
            return None
        if inputs.summed is not None:
            put_sums(inputs.summed, attempt, self.blobs, self.scratch)
        plan = inputs.plan
        layers = plan.layers
        size = PlanSize(
            tasks=tuple(TaskSize(task.file_name, task.input_bytes) for task in plan.tasks),
            layers=None if layers is None else LayerSize(layers.solved, layers.averaged, str(layers)),
        )
        goes_on = self._write(
            lambda session: attempts.begin(session, attempt, size, worker=self.worker, now=self.clock())
        )
        _log.info("planned", tasks=len(plan.tasks), goes_on=goes_on)
        return len(plan.tasks) if goes_on else None

    def longest_first(self, attempt: Attempt) -> list[int]:
        """Return the numbers of the planned tasks, so that no long one is begun when the others are over."""
        tasks = self._read(lambda session: attempts.tasks_of(session, attempt))
        return [task.number for task in sorted(tasks, key=lambda task: (-task.input_bytes, task.number))]

    def priority(self, attempt: Attempt) -> Priority:
        """Return the job's present priority."""
        return self._read(lambda session: attempts.priority(session, attempt))

    def keep_priority(self, attempt: Attempt, enqueued: Priority) -> None:
        """Give the tasks the job's priority if it has changed while they were enqueued with another."""
        if self.priority(attempt) != enqueued:
            self._write(lambda session: attempts.keep_priority(session, attempt))

    def execute(self, attempt: Attempt, number: int, *, shard_bytes: int) -> None:
        """Compute one shard, unless that is done already or the attempt may not go on."""
        if not self._write(
            lambda session: attempts.begin_task(session, attempt, number, worker=self.worker, now=self.clock())
        ):
            return
        inputs = self._inputs(attempt, shard_bytes)
        if inputs is None:
            return
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
            except FileUnwritableError as error:
                _log.warning("shard cannot be written", path=str(target), error=error.message)
                # members read it: which file, and not where the worker keeps it
                msg = error.message.replace(str(target), target.name)
                raise FileUnwritableError(msg, **error.facts) from error
            self.patience(lambda: keep(self.database, self.blobs, {result.file.sha256: target}, clock=self.clock))
        seconds = time.monotonic() - began
        self._write(
            lambda session: attempts.finish_task(
                session,
                attempt,
                number,
                file=result.file,
                diagnostics=result.diagnostics,
                seconds=seconds,
                worker=self.worker,
                now=self.clock(),
            )
        )
        self.metrics.shard_finished(seconds=seconds, read_bytes=watch.done_bytes, written_bytes=result.file.bytes)
        _log.info("task finished", seconds=round(seconds, 3), bytes=result.file.bytes)

    def is_complete(self, attempt: Attempt) -> bool | None:
        """Tell whether all tasks have succeeded; None where the attempt may not go on."""

        def look(session: Session) -> bool | None:
            if not attempts.is_running(session, attempt):
                return None
            return publication.finished_tasks(session, attempt) is not None

        return self._read(look)

    def publish(self, attempt: Attempt, *, shard_bytes: int) -> bool:
        """Publish the model; False where the attempt may not go on, or has been published."""
        inputs = self._inputs(attempt, shard_bytes) if self._begin_step(attempt) else None
        tasks = self._read(lambda session: publication.finished_tasks(session, attempt))
        if inputs is None or tasks is None:
            return False
        prepared = publication.prepare(inputs, attempt, tasks, blobs=self.blobs, key=self.key, now=self.clock())
        self.patience(lambda: keep(self.database, self.blobs, prepared.contents, clock=self.clock))
        summed = inputs.summed

        def write(session: Session) -> bool:
            published = publication.publish(session, attempt, prepared, now=self.clock())
            if published and summed is not None:
                forget_words(session, attempt.project, summed.request, now=self.clock())
            return published

        published = self._write(write)
        if published:
            self.metrics.model_published()
        _log.info("published" if published else "not published")
        return published

    def fail(self, attempt: Attempt, error: GramfuseError, *, task: int | None = None) -> None:
        """End the attempt with an error's code and message, unless it came from a task that another has taken over."""

        def write(session: Session) -> bool:
            if task is not None and attempts.is_out_of_hands(session, attempt, task, self.worker):
                return False
            return attempts.fail(session, attempt, code=error.code, message=error.message, now=self.clock())

        if self._write(write):
            self.metrics.attempt_failed(error.code)
            _log.warning("attempt failed", code=error.code)

    def _begin_step(self, attempt: Attempt) -> bool:
        return self._write(lambda session: attempts.begin_step(session, attempt))

    def _inputs(self, attempt: Attempt, shard_bytes: int) -> MergeInputs | None:
        """Load what decides the attempt's result; None where it may not go on."""

        def load(session: Session) -> MergeInputs | None:
            if not attempts.is_running(session, attempt):
                return None
            return load_inputs(session, attempt, shard_bytes=shard_bytes)

        return self._read(load)

    def _read(self, read: Callable[[Session], T]) -> T:
        def once() -> T:
            with reading(self.database) as session:
                return read(session)

        return self.patience(once)

    def _write(self, write: Callable[[Session], T]) -> T:
        """Write in a transaction of its own, which must be safe to repeat: its commit's answer may be lost."""

        def once() -> T:
            with transaction(self.database) as session:
                return write(session)

        return self.patience(once)


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
            try:
                self.stopped = not self._progress()
            except SQLAlchemyError as error:
                if not is_outage(error):
                    raise
                _log.warning("the database does not answer; computing on", error=type(error).__name__)
            self.looked = self.monotonic()
        return self.stopped

    def _progress(self) -> bool:
        with transaction(self.merger.database) as session:
            return attempts.progress_task(
                session,
                self.attempt,
                self.number,
                done_bytes=self.done_bytes,
                worker=self.merger.worker,
                now=self.merger.clock(),
            )
