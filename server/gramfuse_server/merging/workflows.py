"""The merge as durable workflows: what is journaled, what waits for what, and where an error ends. Imports torch."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, TypeVar

import structlog
from dbos import DBOS, PropagateOtelContext, SetWorkflowID

from gramfuse_server.jobs import MAX_RECOVERY_ATTEMPTS, MERGE, MERGE_SHARD, SHARDS
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.merging.merger import Merger
from gramfuse_shared.errors import GramfuseError

WAIT_SECONDS: Final = 0.2

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class WorkerStopsError(BaseException):
    """This process ends: the workflow stays pending, and another worker takes it over.

    Not an Exception, because DBOS records those as the workflow's outcome.
    """


def register(merger: Merger, *, shard_bytes: int, stopping: threading.Event, traced: bool = False) -> None:
    """Register the workflows with DBOS, before it is launched.

    Args:
        merger: does the work.
        shard_bytes: of merges planned by this worker; it travels with the plan, so that all workers cut alike.
        stopping: set when the worker is to end.
        traced: whether shards join the trace of their merge.
    """

    @DBOS.workflow(name=MERGE_SHARD, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
    def merge_shard(project: str, job: str, number: int, task: int, shard_bytes: int) -> None:
        attempt = Attempt(project, job, number)
        _bounded(merger, attempt, lambda: merger.execute(attempt, task, shard_bytes=shard_bytes), task=task)

    @DBOS.workflow(name=MERGE, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
    def merge(project: str, job: str, number: int) -> None:
        attempt = Attempt(project, job, number)

        def plan() -> list[int] | None:
            count = _bounded(merger, attempt, lambda: merger.plan(attempt, shard_bytes=shard_bytes))
            return None if count is None else [count, shard_bytes]

        planned = DBOS.run_step({"name": "plan"}, plan)
        if planned is None:
            return
        count, cut = planned
        for task in range(count):
            with SetWorkflowID(f"{MERGE_SHARD}:{project}:{job}:{number}:{task}"), _joined(traced=traced):
                DBOS.enqueue_workflow(SHARDS, merge_shard, project, job, number, task, cut)
        if _wait(merger, attempt, stopping):
            DBOS.run_step(
                {"name": "publish"},
                lambda: _bounded(merger, attempt, lambda: merger.publish(attempt, shard_bytes=cut)),
            )


def _joined(*, traced: bool) -> AbstractContextManager[object]:
    return PropagateOtelContext() if traced else nullcontext()


def _wait(merger: Merger, attempt: Attempt, stopping: threading.Event) -> bool:
    """Wait for the attempt's tasks by their rows; tell whether all succeeded. Journals nothing."""
    while (complete := merger.is_complete(attempt)) is False:
        if stopping.wait(WAIT_SECONDS):
            raise WorkerStopsError
    return complete is True


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
