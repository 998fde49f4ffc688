"""Durable jobs on DBOS, in the application's own database. Never torch: workflows are named here, the worker runs them.

A job is enqueued in the transaction that writes its row, so that neither can be lost without the other. The version of
the application is pinned: a computed one changes with every release and would strand what is pending. Everything that
DBOS stores is portable JSON, never pickle.
"""

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, EnqueueOptions
from sqlalchemy import TableClause, column, func, inspect, select, table, update
from sqlalchemy.orm import Session

from gramfuse_server.database import Database, database_url
from gramfuse_server.settings import Settings
from gramfuse_server.tables import AttemptRow, JobContributionRow, JobLogRow, JobRow, UploadRow
from gramfuse_server.tracing import present_context
from gramfuse_shared.contract.operators import Priority

APPLICATION_NAME: Final = "gramfuse"
APPLICATION_VERSION: Final = "1"
"""Raised only when pending workflows of the version before can no longer be finished by this code."""

INSPECTIONS: Final = "inspections"
MERGES: Final = "merges"
SHARDS: Final = "shards"
"""A queue of their own: on one queue with their merges, these could hold every slot that their shards wait for."""

INSPECT: Final = "inspect"
MERGE: Final = "merge"
MERGE_SHARD: Final = "merge_shard"

PLACES: Final[Mapping[Priority, int]] = {"high": 1, "normal": 2, "low": 3}
"""In a queue the lowest place goes first, and in one place who came first."""

POLLING_SECONDS: Final = 0.25
"""Three queues are polled by every worker for ever: at a tenth of a second that took twice the processor time."""
MAX_RECOVERY_ATTEMPTS: Final = 3
"""After so many take-overs a piece of work is taken for what ended those who tried it."""
MERGE_RECOVERY_ATTEMPTS: Final = 1_000
"""Of merges, which wait for their shards beside many others: whatever ends a worker, it is hardly one that waits.
How often their own steps were begun is counted apart."""
GIVEN_UP: Final = "every worker that tried it ended; the workers' logs have the cause"
UNFINISHED: Final = ("queued", "running")

_SCHEMA: Final = "dbos"
_SAID_AGAIN_SECONDS: Final = 10.0


class JobQueue:
    """Enqueues work for the workers, and cancels jobs, inside the caller's transaction."""

    def __init__(self, database: Database, *, traced: bool = False) -> None:
        self.traced = traced
        """Whether the work joins the trace of the request that enqueued it."""
        self._client = DBOSClient(
            system_database_engine=database.write,
            dbos_system_schema=_SCHEMA,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION_NAME,
            lazy=True,  # the first transaction connects
        )

    def enqueue_inspection(self, session: Session, upload: UploadRow) -> None:
        """Have a sealed upload assembled, checked, and accepted or rejected. An upload is sealed once.

        Args:
            session: the transaction that seals the upload.
            upload: what was sealed.
        """
        self._enqueue(session, INSPECTIONS, INSPECT, inspection_workflow(upload.id), upload.id)

    def enqueue_merge(self, session: Session, *, project: str, job: str, attempt: int, priority: Priority) -> str:
        """Have an attempt at a job carried out; return its workflow's id, which the attempt's row keeps."""
        workflow = merge_workflow(project, job, attempt)
        self._enqueue(session, MERGES, MERGE, workflow, project, job, attempt, place=PLACES[priority])
        return workflow

    def cancel(self, session: Session, *, project: str, job: str, now: datetime, reason: str) -> bool:
        """Cancel a job that has not finished; tell whether it was one.

        The row's state is what counts: a worker looks at it between tasks and about once a second within one, and
        nothing is published of a job that is not running.
        """
        row = session.get(JobRow, (project, job), with_for_update=True)
        if row is None or row.state not in UNFINISHED:
            return False
        attempt = session.get_one(AttemptRow, (project, job, row.attempt))
        row.state = attempt.state = "cancelled"
        row.stage, row.rate = "cancelled", None
        row.finished_at = attempt.finished_at = now
        write_log(session, row, now, reason)
        return True

    def cancel_jobs_of(self, session: Session, *, project: str, now: datetime, reason: str) -> list[str]:
        """Cancel every unfinished job of a project; return their ids."""
        rows = session.scalars(
            select(JobRow.id).where(JobRow.project == project, JobRow.state.in_(UNFINISHED)).order_by(JobRow.id)
        ).all()
        return [job for job in rows if self.cancel(session, project=project, job=job, now=now, reason=reason)]

    def cancel_jobs_using(self, session: Session, *, contribution: str, now: datetime) -> list[str]:
        """Cancel every unfinished job whose cohort holds the contribution; return their ids."""
        rows = session.execute(
            select(JobRow.project, JobRow.id)
            .join(
                JobContributionRow,
                (JobContributionRow.project == JobRow.project) & (JobContributionRow.job == JobRow.id),
            )
            .where(JobContributionRow.contribution == contribution, JobRow.state.in_(UNFINISHED))
        ).all()
        reason = f"cancelled: contribution {contribution} was withdrawn"
        return [job for project, job in rows if self.cancel(session, project=project, job=job, now=now, reason=reason)]

    def hand_back(self, executor: str) -> list[str]:
        """Put a worker's pending workflows back into their queues, as if nobody had tried them; return their ids.

        For a worker that ends in good order and runs nothing any more. Those of one that died are taken over instead,
        which counts the tries, so that a job that kills its workers ends.
        """
        pending = self._client.list_workflows(
            status="PENDING", executor_id=executor, load_input=False, load_output=False
        )
        for workflow in pending:
            self._client.resume_workflow(workflow.workflow_id, queue_name=workflow.queue_name)
        return [workflow.workflow_id for workflow in pending]

    def _enqueue(
        self,
        session: Session,
        queue: str,
        workflow: str,
        workflow_id: str,
        *arguments: str | int,
        place: int = PLACES["normal"],
    ) -> None:
        options: EnqueueOptions = {
            "queue_name": queue,
            "workflow_name": workflow,
            "workflow_id": workflow_id,
            "app_version": APPLICATION_VERSION,
            "priority": place,
        }
        if self.traced:
            options["otel_context"] = present_context()
        self._client.enqueue_in_transaction(session, options, *arguments)


def inspection_workflow(upload: str) -> str:
    """Return the id of the workflow that inspects an upload."""
    return f"{INSPECT}:{upload}"


def merge_workflow(project: str, job: str, attempt: int) -> str:
    """Return the id of the workflow that carries an attempt out."""
    return f"{MERGE}:{project}:{job}:{attempt}"


def shard_workflow(project: str, job: str, attempt: int, task: int) -> str:
    """Return the id of the workflow that computes a task."""
    return f"{MERGE_SHARD}:{project}:{job}:{attempt}:{task}"


def prioritize(session: Session, *, project: str, job: str, attempt: int, priority: Priority) -> None:
    """Give an attempt's workflows, those of its tasks included, another place in their queues.

    DBOS takes a priority when a workflow is enqueued, and has no word for another one later.
    """
    workflows = _workflows(session)
    shards = f"{MERGE_SHARD}:{project}:{job}:{attempt}:"
    session.execute(
        update(workflows)
        .where(
            (workflows.c.workflow_uuid == merge_workflow(project, job, attempt))
            | workflows.c.workflow_uuid.startswith(shards, autoescape=True),
            workflows.c.status.in_(("ENQUEUED", "PENDING")),
        )
        .values(priority=PLACES[priority])
    )


def executor_of(session: Session, workflow: str) -> str | None:
    """Return the worker that claimed a workflow last; None of one that is not known, or that nobody has claimed.

    Who asks for a row that every executor has to lock, and holds it, hears of every claim whose executor had it before.
    """
    workflows = _workflows(session)
    found: str | None = session.scalar(select(workflows.c.executor_id).where(workflows.c.workflow_uuid == workflow))
    return found


def write_log(session: Session, job: JobRow, now: datetime, message: str) -> None:
    """Add a line to a job's history. The caller holds the job's row, so that numbers do not collide."""
    last = session.scalar(
        select(func.max(JobLogRow.sequence)).where(JobLogRow.project == job.project, JobLogRow.job == job.id)
    )
    session.add(
        JobLogRow(
            project=job.project, job=job.id, sequence=(last or 0) + 1, at=now, attempt=job.attempt, message=message
        )
    )
    session.flush()


def migrate(settings: Settings) -> None:
    """Create or upgrade DBOS' own tables, beside ours."""
    _quiet()
    DBOS.migrate(_url(settings), schema=_SCHEMA)


def is_migrated(database: Database) -> bool:
    """Tell whether DBOS' own tables are there."""
    with database.read.connect() as connection:
        schema = None if connection.dialect.name == "sqlite" else _SCHEMA
        return inspect(connection).has_table("workflow_status", schema=schema)


def worker_configuration(settings: Settings, database: Database, executor: str, *, traced: bool = False) -> DBOSConfig:
    """Return how a worker runs DBOS; `executor` names the worker, and stands on every workflow that it claims.

    On PostgreSQL it uses our engine, which knows what to do about a server that is away. On SQLite ours would take
    the lock of writers for each of its looks. If it is traced, workflows and steps are spans of the provider that
    `start_tracing` has set.
    """
    _quiet()
    return DBOSConfig(
        name=APPLICATION_NAME,
        system_database_url=_url(settings),
        system_database_engine=None if database.write.dialect.name == "sqlite" else database.write,
        dbos_system_schema=_SCHEMA,
        application_version=APPLICATION_VERSION,
        executor_id=executor,
        serializer=DBOSPortableJSONSerializer(),
        run_migrations=False,  # `gramfuse-server db upgrade` does
        log_level="WARNING",
        enable_otlp=traced,
        otel_attribute_format="semconv",
    )


def _workflows(session: Session) -> TableClause:
    """DBOS' own table of workflows, as far as it is used here."""
    schema = None if session.get_bind().dialect.name == "sqlite" else _SCHEMA
    return table("workflow_status", *map(column, ("workflow_uuid", "status", "executor_id", "priority")), schema=schema)


def _url(settings: Settings) -> str:
    url = database_url(settings.database_url)
    # DBOS knows SQLite by the plain scheme only
    plain = url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url
    return plain.render_as_string(hide_password=False)


def _quiet() -> None:
    """Have DBOS say only what matters, and in the form of all other lines: it would write its own to the console."""
    logger = logging.getLogger("dbos")
    logger.setLevel(logging.WARNING)
    if not logger.handlers:  # it adds its own only where there is none, and then passes nothing on
        logger.addHandler(logging.NullHandler())
        logger.addFilter(_OnceInAWhile())


class _OnceInAWhile(logging.Filter):
    """Lets what is said again and again through every ten seconds: pollers of a database that is away say it often."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to say it."""
        if record.levelno < logging.WARNING or record.threadName is None or "queue" not in record.threadName:
            return True
        said, now = record.getMessage().partition(":")[0], time.monotonic()
        if now - self._last.get(said, -_SAID_AGAIN_SECONDS) < _SAID_AGAIN_SECONDS:
            return False
        self._last[said] = now
        return True
