"""The merge as durable workflows: what is journaled, what waits for what, and where an error ends. Imports torch."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog
from dbos import DBOS, PropagateOtelContext, SetEnqueueOptions, SetWorkflowID

from gramfuse_server.jobs import (
    MAX_RECOVERY_ATTEMPTS,
    MERGE,
    MERGE_RECOVERY_ATTEMPTS,
    MERGE_SHARD,
    PLACES,
    SHARDS,
    merge_workflow,
    shard_workflow,
)
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.merging.merger import Merger
from gramfuse_server.patience import WorkerStopsError
from gramfuse_server.underway import Underway
from gramfuse_shared.errors import GramfuseError

WAIT_SECONDS: Final = 0.2

T = TypeVar("T")

_log = structlog.get_logger(__name__)


def register(
    merger: Merger, *, shard_bytes: int, stopping: threading.Event, underway: Underway, traced: bool = False
) -> None:
    """Register the workflows with DBOS, before it is launched.

    Args:
        merger: does the work.
        shard_bytes: of merges planned by this worker; it travels with the plan, so that all workers cut alike.
        stopping: set when the worker is to end.
        underway: knows what is carried out here.
        traced: whether shards join the trace of their merge.
    """
    wait = _Wait(merger, stopping)

    @DBOS.workflow(name=MERGE_SHARD, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
    def merge_shard(project: str, job: str, number: int, task: int, shard_bytes: int) -> None:
        attempt = Attempt(project, job, number)
        with underway.carrying_out(shard_workflow(project, job, number, task)):
            _bounded(merger, attempt, lambda: merger.execute(attempt, task, shard_bytes=shard_bytes), task=task)

    @DBOS.workflow(name=MERGE, max_recovery_attempts=MERGE_RECOVERY_ATTEMPTS)
    def merge(project: str, job: str, number: int) -> None:
        attempt = Attempt(project, job, number)
        with underway.carrying_out(merge_workflow(project, job, number)):
            planned = DBOS.run_step({"name": "plan"}, lambda: plan(attempt))
            if planned is None:
                return
            count, cut, *order = planned
            priority = merger.priority(attempt)
            for task in order or range(count):  # journals of before there was an order have none
                with (
                    SetWorkflowID(shard_workflow(project, job, number, task)),
                    SetEnqueueOptions(priority=PLACES[priority]),
                    _joined(traced=traced),
                ):
                    DBOS.enqueue_workflow(SHARDS, merge_shard, project, job, number, task, cut)
            merger.keep_priority(attempt, priority)
            if wait(attempt):
                DBOS.run_step(
                    {"name": "publish"},
                    lambda: _bounded(merger, attempt, lambda: merger.publish(attempt, shard_bytes=cut)),
                )

    def plan(attempt: Attempt) -> list[int] | None:
        count = _bounded(merger, attempt, lambda: merger.plan(attempt, shard_bytes=shard_bytes))
        return None if count is None else [count, shard_bytes, *merger.longest_first(attempt)]


def _joined(*, traced: bool) -> AbstractContextManager[object]:
    return PropagateOtelContext() if traced else nullcontext()


@dataclass(slots=True)
class _Wait:
    """Waits for attempts' tasks by their rows. Many attempts together look as often as one."""

    merger: Merger
    stopping: threading.Event
    waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, attempt: Attempt) -> bool:
        """Tell whether all tasks succeeded, once they have, or once the attempt may not go on. Journals nothing."""
        self._count(1)
        try:
            while (complete := self.merger.is_complete(attempt)) is False:
                if self.stopping.wait(WAIT_SECONDS * self.waiting):
                    raise WorkerStopsError
            return complete is True
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self.lock:
            self.waiting += change


def _bounded(merger: Merger, attempt: Attempt, work: Callable[[], T], *, task: int | None = None) -> T | None:
    """Do the work of an attempt; whatever goes wrong ends the attempt with its code and message.

    Every line that is logged within says whose work it is.
    """
    told = {"worker": merger.worker, "project": attempt.project, "job": attempt.job, "attempt": attempt.number}
    with structlog.contextvars.bound_contextvars(**told, **({} if task is None else {"task": task})):
        try:
            return work()
        except GramfuseError as error:
            merger.fail(attempt, error, task=task)
        except Exception as error:  # noqa: BLE001 - the border of the attempt, see below
            # the border of the attempt: a bug or a failing machine must not leave the job running for ever
            _log.exception("attempt crashed")
            crash = GramfuseError(f"the worker failed with {type(error).__name__}; its log has the details")
            merger.fail(attempt, crash, task=task)
    return None
