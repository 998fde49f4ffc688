"""The rows of a running attempt: begin, tasks, progress, end.

Every write first looks whether the attempt is still the job's present one and not finished, so a worker that lost its
work to another, or whose job was cancelled, changes nothing any more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log, keeping
from gramfuse_server.jobs import (
    GIVEN_UP,
    MAX_RECOVERY_ATTEMPTS,
    UNFINISHED,
    executor_of,
    prioritize,
    shard_workflow,
    write_log,
)
from gramfuse_server.tables import AttemptRow, JobRow, TaskRow
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.operators import Priority
from gramfuse_shared.errors import GramfuseError
from gramfuse_shared.units import format_bytes

MAX_MESSAGE_CHARACTERS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job, by name."""

    project: str
    job: str
    number: int


@dataclass(frozen=True, slots=True)
class TaskSize:
    """A planned task: the file that it writes and the bytes that it reads."""

    file: str
    input_bytes: int


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Linear layers that the method solves, those that it has to average, and the sentence that says why."""

    solved: int
    averaged: int
    message: str


@dataclass(frozen=True, slots=True)
class PlanSize:
    """A plan as an attempt notes it; `layers` is None where the method reads no statistics."""

    tasks: tuple[TaskSize, ...]
    layers: LayerSize | None = None


def is_running(session: Session, attempt: Attempt) -> bool:
    """Tell whether the attempt may go on."""
    state = session.scalar(
        select(JobRow.state).where(
            JobRow.project == attempt.project, JobRow.id == attempt.job, JobRow.attempt == attempt.number
        )
    )
    return state in UNFINISHED


def row_of(session: Session, attempt: Attempt) -> AttemptRow:
    """Return the attempt's row."""
    return session.get_one(AttemptRow, (attempt.project, attempt.job, attempt.number))


def lock(session: Session, attempt: Attempt) -> JobRow | None:
    """Return the job's row, held until the commit, if the attempt may go on."""
    row = session.scalars(
        select(JobRow)
        .where(JobRow.project == attempt.project, JobRow.id == attempt.job, JobRow.attempt == attempt.number)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()
    return row if row is not None and row.state in UNFINISHED else None


def priority(session: Session, attempt: Attempt) -> Priority:
    """Return the job's present priority."""
    return cast("Priority", session.get_one(JobRow, (attempt.project, attempt.job)).priority)


def keep_priority(session: Session, attempt: Attempt) -> None:
    """Give all of the attempt's workflows the job's priority."""
    if lock(session, attempt) is not None:
        prioritize(
            session,
            project=attempt.project,
            job=attempt.job,
            attempt=attempt.number,
            priority=priority(session, attempt),
        )


def begin_step(session: Session, attempt: Attempt) -> bool:
    """Count that the attempt is being planned, or published; False where it may not go on.

    Waiting for its tasks is not counted: a worker that ends has dozens of attempts that only wait.

    Raises:
        GramfuseError: the step was begun too often without being done.
    """
    if lock(session, attempt) is None:
        return False
    row = row_of(session, attempt)
    row.executions += 1
    if row.executions > MAX_RECOVERY_ATTEMPTS + 1:
        msg = f"given up: {GIVEN_UP}"
        raise GramfuseError(msg)
    return True


def begin(session: Session, attempt: Attempt, size: PlanSize, *, worker: str, now: datetime) -> bool:
    """Note the plan; tell whether the attempt may go on. Beginning twice changes nothing but the worker."""
    job = lock(session, attempt)
    if job is None:
        return False
    row = row_of(session, attempt)
    taken_over = row.worker not in {None, worker}
    row.worker, row.executions = worker, 0
    if job.state == "queued":
        job.state = row.state = "running"
        job.stage = "merging"
        job.started_at = row.started_at = now
        job.total_tasks, job.total_bytes = len(size.tasks), sum(task.input_bytes for task in size.tasks)
        for number, task in enumerate(size.tasks):
            session.add(
                TaskRow(
                    project=attempt.project,
                    job=attempt.job,
                    attempt=attempt.number,
                    number=number,
                    file=task.file,
                    input_bytes=task.input_bytes,
                    state="queued",
                )
            )
        if size.layers is not None:
            job.solved_layers, job.averaged_layers = size.layers.solved, size.layers.averaged
            write_log(session, job, now, size.layers.message)
        write_log(session, job, now, f"planned: {_shards(len(size.tasks))}, {format_bytes(job.total_bytes)} to read")
    elif taken_over:
        write_log(session, job, now, "taken over by another worker")
    return True


def begin_task(session: Session, attempt: Attempt, number: int, *, worker: str, now: datetime) -> bool:
    """Take a task; False where it is finished already, another worker's, or the attempt may not go on.

    A worker that stood still between claiming the task and this finds that another has claimed it since.
    """
    job = lock(session, attempt)
    if job is None:
        return False
    task = _task(session, attempt, number)
    if task.state == "succeeded" or _is_claimed_by_another(session, attempt, number, worker):
        return False
    task.state, task.worker, task.done_bytes = "running", worker, 0
    task.executions += 1
    if task.executions > 1:
        write_log(session, job, now, f"{task.file} is begun again")
    _add_up(session, job, now)
    return True


def progress_task(
    session: Session, attempt: Attempt, number: int, *, done_bytes: int, worker: str, now: datetime
) -> bool:
    """Note how much of a task has been read; False where its worker must stop."""
    job = lock(session, attempt)
    if job is None:
        return False
    task = _task(session, attempt, number)
    if task.worker != worker or task.state != "running":
        return False
    task.done_bytes = min(done_bytes, task.input_bytes)
    _add_up(session, job, now)
    return True


def finish_task(
    session: Session,
    attempt: Attempt,
    number: int,
    *,
    file: FileEntry,
    diagnostics: Any,  # noqa: ANN401 - the engine's, any JSON value
    seconds: float,
    worker: str,
    now: datetime,
) -> None:
    """Note a task's shard, whose blob is stored. Whoever finishes first counts; both wrote the same bytes."""
    job = lock(session, attempt)
    task = _task(session, attempt, number)
    if job is None or task.state == "succeeded":
        keeping.let_go(session, [file.sha256])
        return
    keeping.name(session, [file.sha256])
    task.state, task.worker, task.done_bytes = "succeeded", worker, task.input_bytes
    task.bytes, task.sha256, task.seconds = file.bytes, file.sha256, seconds
    task.diagnostics = json.dumps(diagnostics)
    _add_up(session, job, now)
    write_log(session, job, now, f"{task.file}: {format_bytes(file.bytes)} in {seconds:.1f} s")


def is_out_of_hands(session: Session, attempt: Attempt, number: int, worker: str) -> bool:
    """Tell whether a task is finished, or another worker's, so that this one's troubles with it do not count."""
    task = _task(session, attempt, number)
    if task.state == "succeeded" or (task.state == "running" and task.worker != worker):
        return True
    return _is_claimed_by_another(session, attempt, number, worker)


def fail(session: Session, attempt: Attempt, *, code: str, message: str, now: datetime) -> bool:
    """End the attempt without a model; tell whether it was still going on."""
    job = lock(session, attempt)
    if job is None:
        return False
    row = row_of(session, attempt)
    message = message[:MAX_MESSAGE_CHARACTERS]
    job.state = row.state = job.stage = "failed"
    job.error_code = row.error_code = code
    job.error_message = row.error_message = message
    job.finished_at = row.finished_at = now
    job.rate = None
    write_log(session, job, now, f"failed: {code}: {message}")
    audit_log.append(
        session,
        at=now,
        organization=None,
        token=None,
        action="job.fail",
        subject=f"{attempt.project}/{attempt.job}",
        details={"attempt": attempt.number, "code": code},
    )
    return True


def tasks_of(session: Session, attempt: Attempt) -> Sequence[TaskRow]:
    """Return the attempt's tasks in order."""
    return session.scalars(
        select(TaskRow)
        .where(TaskRow.project == attempt.project, TaskRow.job == attempt.job, TaskRow.attempt == attempt.number)
        .order_by(TaskRow.number)
    ).all()


def _is_claimed_by_another(session: Session, attempt: Attempt, number: int, worker: str) -> bool:
    """Tell whose the job engine says a task is. To be asked by who holds the job's row, as every worker does first."""
    claimed = executor_of(session, shard_workflow(attempt.project, attempt.job, attempt.number, number))
    return claimed not in {None, worker}


def _task(session: Session, attempt: Attempt, number: int) -> TaskRow:
    return session.get_one(TaskRow, (attempt.project, attempt.job, attempt.number, number))


def _add_up(session: Session, job: JobRow, now: datetime) -> None:
    session.flush()
    mine = (TaskRow.project == job.project, TaskRow.job == job.id, TaskRow.attempt == job.attempt)
    job.done_bytes = int(session.scalar(select(func.coalesce(func.sum(TaskRow.done_bytes), 0)).where(*mine)) or 0)
    job.done_tasks = session.scalar(select(func.count()).where(*mine, TaskRow.state == "succeeded")) or 0
    elapsed = (now - job.started_at).total_seconds() if job.started_at else 0.0
    job.rate = job.done_bytes / elapsed if elapsed > 0 else None


def _shards(count: int) -> str:
    return f"{count} shard{'' if count == 1 else 's'}"
