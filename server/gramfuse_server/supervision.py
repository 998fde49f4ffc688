"""What every worker does for all: take dead workers' work over, end what cannot end by itself, sweep.

Safe on any number of workers at once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog
from dbos import DBOS, WorkflowStatus
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, reading, transaction
from gramfuse_server.heartbeats import Watch, last_beats
from gramfuse_server.intake.inspection import Inspector
from gramfuse_server.intake.uploads import expire_uploads
from gramfuse_server.jobs import APPLICATION_VERSION, GIVEN_UP, UNFINISHED, inspection_workflow, shard_workflow
from gramfuse_server.merging import attempts
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.metrics.work import WorkMetrics
from gramfuse_server.requests.kept_words import forget_abandoned_words
from gramfuse_server.sweeping import adopt_strays, delete_spent_bytes
from gramfuse_server.tables import AttemptRow, TaskRow, UploadRow
from gramfuse_server.underway import Underway
from gramfuse_shared import limits
from gramfuse_shared.errors import GramfuseError

_ENDED: Final = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

_ASKED_AT_ONCE: Final = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Supervisor:
    """One worker's share of the duties; `worker` is its own name."""

    database: Database
    blobs: Blobs
    inspector: Inspector
    worker: str
    watch: Watch
    clock: Clock
    metrics: WorkMetrics = field(default_factory=WorkMetrics)
    underway: Underway = field(default_factory=Underway)
    monotonic: Callable[[], float] = time.monotonic
    blob_grace: timedelta = limits.BLOB_GRACE

    def take_over(self) -> list[str]:
        """Free the pending workflows of dead workers, and lost ones of this worker; return the dead."""
        pending = DBOS.list_workflows(
            status="PENDING", app_version=APPLICATION_VERSION, load_input=False, load_output=False
        )
        self._put_back(pending)
        others = {workflow.executor_id for workflow in pending if workflow.executor_id} - {self.worker}
        if not others:
            return []
        with reading(self.database) as session:
            beats = last_beats(session, others)
        dead = self.watch.dead(beats, self.monotonic())
        if dead:
            # resume_workflow would forget how often a workflow has been tried, and its queue, and could restart one
            # that another worker has taken over in this moment; this is guarded by the dead worker's name
            DBOS._recover_pending_workflows(dead)  # noqa: SLF001 - see above; the take-over tests would notice
            self.metrics.took_over(len(dead))
            _log.warning("took over", dead=dead, workflows=len(pending))
        return dead

    def _put_back(self, pending: Sequence[WorkflowStatus]) -> None:
        """Queue this worker's workflows again that no thread carries out: their end could not be noted."""
        mine = {
            workflow.workflow_id: workflow.queue_name for workflow in pending if workflow.executor_id == self.worker
        }
        for workflow in self.underway.lost(mine, self.monotonic()):
            # safe while a thread still tries to note the end: its note counts only while the workflow is its own
            DBOS.resume_workflow(workflow, queue_name=mine[workflow])
            _log.warning("queued again", workflow=workflow)

    def end_abandoned(self) -> None:
        """End attempts and inspections whose workflows have ended without ending them."""
        self._end_attempts()
        self._end_inspections()

    def sweep(self) -> None:
        """Expire uploads, let go of sessions that were abandoned, and delete bytes that have no further use."""
        now = self.clock()
        with transaction(self.database) as session:
            expired = expire_uploads(session, now)
            forget_abandoned_words(session, now)
        deleted = delete_spent_bytes(self.database, self.blobs, now, grace=self.blob_grace)
        self.metrics.swept(expired_uploads=expired, deleted_files=deleted)
        if expired or deleted:
            _log.info("swept", expired_uploads=expired, deleted_keys=deleted)

    def adopt(self) -> None:
        """Look for complete files in the store that the account does not know; lists the whole store."""
        adopted = adopt_strays(self.database, self.blobs, self.clock())
        if adopted:
            _log.warning("found files that nothing knows", files=adopted, deleted_in=str(self.blob_grace))

    def _end_attempts(self) -> None:
        with reading(self.database) as session:
            rows = session.scalars(select(AttemptRow).where(AttemptRow.state.in_(UNFINISHED))).all()
            waiting = _unfinished_tasks(session, AttemptRow.state.in_(UNFINISHED))
        workflows = {row.workflow: [row.workflow, *map(_shard, waiting.get(_key(row), ()))] for row in rows}
        ended = _ended([workflow for each in workflows.values() for workflow in each])
        for row in rows:
            if ended.isdisjoint(workflows[row.workflow]):
                continue
            attempt = Attempt(row.project, row.job, row.number)
            with transaction(self.database) as session:
                # rows end before their workflows: one that is unfinished after its workflow's end stays unfinished
                left = _unfinished_tasks(session, AttemptRow.workflow == row.workflow).get(_key(row), ())
                if row.workflow in ended or not ended.isdisjoint(map(_shard, left)):
                    message = f"given up: {GIVEN_UP}"
                    attempts.fail(session, attempt, code=GramfuseError.code, message=message, now=self.clock())
                    _log.warning("attempt given up", project=row.project, job=row.job, attempt=row.number)

    def _end_inspections(self) -> None:
        with reading(self.database) as session:
            sealed = session.scalars(select(UploadRow.id).where(UploadRow.state == "sealed")).all()
        ended = _ended([inspection_workflow(upload) for upload in sealed])
        for upload in sealed:
            if inspection_workflow(upload) in ended:
                self.inspector.abandon(upload, f"could not be inspected: {GIVEN_UP}; send it again")


def _key(attempt: AttemptRow) -> tuple[str, str, int]:
    return attempt.project, attempt.job, attempt.number


def _shard(task: TaskRow) -> str:
    return shard_workflow(task.project, task.job, task.attempt, task.number)


def _unfinished_tasks(session: Session, of: ColumnElement[bool]) -> dict[tuple[str, str, int], list[TaskRow]]:
    """Return what some attempts still have to do, by attempt, in one query however many there are."""
    found: dict[tuple[str, str, int], list[TaskRow]] = {}
    for task in session.scalars(
        select(TaskRow)
        .join(
            AttemptRow,
            (AttemptRow.project == TaskRow.project)
            & (AttemptRow.job == TaskRow.job)
            & (AttemptRow.number == TaskRow.attempt),
        )
        .where(of, TaskRow.state != "succeeded")
        .order_by(TaskRow.number)
    ):
        found.setdefault((task.project, task.job, task.attempt), []).append(task)
    return found


def _ended(workflows: Sequence[str]) -> set[str]:
    """Return those of the workflows that have ended, asking for many at once."""
    ended: set[str] = set()
    for start in range(0, len(workflows), _ASKED_AT_ONCE):
        asked = list(workflows[start : start + _ASKED_AT_ONCE])
        found = DBOS.list_workflows(workflow_ids=asked, status=list(_ENDED), load_input=False, load_output=False)
        ended.update(workflow.workflow_id for workflow in found)
    return ended
