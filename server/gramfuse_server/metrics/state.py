"""What the database says whenever Prometheus asks: jobs, queues, workers, storage. Counts, never who or what."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, reading
from gramfuse_server.heartbeats import is_alive
from gramfuse_server.jobs import INSPECTIONS, MERGES, SHARDS
from gramfuse_server.operations import counts
from gramfuse_server.tables import AttemptRow, JobRow, TaskRow, UploadRow, WorkerRow
from gramfuse_shared.contract.http_api import ContributionState, JobState
from gramfuse_shared.version import __version__


class StateCollector(Collector):
    """Asks the database at each scrape. Every API process tells the same, so add nothing up over processes."""

    def __init__(self, database: Database, clock: Clock, *, lease: timedelta) -> None:
        self._database = database
        self._clock = clock
        self._lease = lease

    def collect(self) -> Iterator[Metric]:
        """Read everything in one session; where the database does not answer, say that and nothing else of it."""
        yield _by("version", "gramfuse_build_info", "This process's version.", {__version__: 1})
        try:
            with reading(self._database) as session:
                found = list(self._read(session))
        except SQLAlchemyError:
            found = []
        yield _value("gramfuse_database_up", "Whether the database answered.", bool(found))
        yield from found

    def _read(self, session: Session) -> Iterator[Metric]:
        now = self._clock()
        jobs = dict.fromkeys(get_args(JobState), 0) | _count_jobs(session)
        contributions = dict.fromkeys(get_args(ContributionState), 0) | counts.count_contributions(session, now)
        yield _by("state", "gramfuse_jobs", "Jobs.", jobs)
        yield _by("state", "gramfuse_contributions", "Contributions.", contributions)
        yield from _queues(session, now)
        rows = session.scalars(select(WorkerRow).where(WorkerRow.stopped_at.is_(None))).all()
        alive = sum(is_alive(row, now, self._lease) for row in rows)
        yield _value("gramfuse_workers_alive", "Workers that gave a sign of life within their lease.", alive)
        stored = counts.storage(session)
        yield _value("gramfuse_blobs", "Files in the blob store.", stored.blobs)
        kinds = {"files": stored.blob_bytes, "open_uploads": stored.open_upload_bytes}
        yield _by("kind", "gramfuse_storage_bytes", "Bytes in the blob store, by the database's account.", kinds)


def _queues(session: Session, now: datetime) -> Iterator[Metric]:
    sealed, first_sealed = session.execute(
        select(func.count(), func.min(UploadRow.sealed_at)).where(UploadRow.state == "sealed")
    ).one()
    queued, first_queued = session.execute(
        select(func.count(), func.min(AttemptRow.created_at)).where(AttemptRow.state == "queued")
    ).one()
    shards = session.scalar(
        select(func.count())
        .select_from(TaskRow)
        .join(JobRow, (JobRow.project == TaskRow.project) & (JobRow.id == TaskRow.job))
        .where(TaskRow.state == "queued", TaskRow.attempt == JobRow.attempt, JobRow.state == "running")
    )
    lengths = {INSPECTIONS: sealed, MERGES: queued, SHARDS: shards or 0}
    yield _by("queue", "gramfuse_queue_length", "What waits for a worker, or is being inspected.", lengths)
    ages = {INSPECTIONS: _age(first_sealed, now), MERGES: _age(first_queued, now)}
    yield _by("queue", "gramfuse_queue_oldest_age_seconds", "How long the first in a queue has waited.", ages)


def _count_jobs(session: Session) -> dict[str, int]:
    counts = session.execute(select(JobRow.state, func.count().label("total")).group_by(JobRow.state))
    return {count.state: count.total for count in counts}


def _age(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


def _value(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)


def _by(label: str, name: str, documentation: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
