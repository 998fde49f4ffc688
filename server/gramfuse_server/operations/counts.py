"""The whole server in numbers: how many there are of everything, what is stored, which workers are alive."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from gramfuse_server.heartbeats import is_alive
from gramfuse_server.merging.documents import job_documents
from gramfuse_server.tables import (
    BlobRow,
    JobRow,
    ModelRow,
    OrganizationRow,
    ProjectRow,
    TaskRow,
    UploadPartRow,
    UploadRow,
    WorkerRow,
)
from gramfuse_shared.contract.operators import Overview, Storage, WorkerInfo
from gramfuse_shared.version import __version__

RECENT_FAILURES: Final = 10


def overview(session: Session, now: datetime, lease: timedelta) -> Overview:
    """Count everything."""
    failures = session.scalars(
        select(JobRow)
        .where(JobRow.state == "failed")
        .order_by(JobRow.finished_at.desc(), JobRow.id)
        .limit(RECENT_FAILURES)
    ).all()
    workers = session.scalars(select(WorkerRow).where(WorkerRow.stopped_at.is_(None)))
    jobs = session.execute(select(JobRow.state, func.count().label("total")).group_by(JobRow.state))
    return Overview(
        version=__version__,
        workers_alive=sum(is_alive(row, now, lease) for row in workers),
        organizations=session.scalar(select(func.count()).select_from(OrganizationRow)) or 0,
        projects=session.scalar(select(func.count()).select_from(ProjectRow).where(ProjectRow.deleted_at.is_(None)))
        or 0,
        contributions=count_contributions(session, now),
        jobs={row.state: row.total for row in jobs},
        models=session.scalar(select(func.count()).select_from(ModelRow).where(ModelRow.deleted_at.is_(None))) or 0,
        storage=storage(session),
        recent_failures=tuple(job_documents(session, failures)),
    )


def count_contributions(session: Session, now: datetime) -> dict[str, int]:
    """Count contributions by the state that is shown."""
    overdue = and_(UploadRow.state == "open", UploadRow.expires_at <= now)
    shown = case((overdue, "expired"), else_=UploadRow.state).label("shown")
    rows = session.execute(
        select(shown, func.count().label("total")).where(UploadRow.kind == "contribution").group_by(shown)
    )
    return {row.shown: row.total for row in rows}


def storage(session: Session) -> Storage:
    """Add up what is stored, by the database's account."""
    blobs, size = session.execute(select(func.count(), func.coalesce(func.sum(BlobRow.bytes), 0))).one()
    arriving = session.scalar(
        select(func.coalesce(func.sum(UploadPartRow.bytes), 0))
        .join(UploadRow, UploadRow.id == UploadPartRow.upload)
        .where(UploadRow.state.in_(("open", "sealed")))
    )
    return Storage(blobs=blobs, blob_bytes=int(size), open_upload_bytes=int(arriving or 0))


def worker_documents(session: Session, rows: Sequence[WorkerRow], now: datetime, lease: timedelta) -> list[WorkerInfo]:
    """Describe workers, each with the tasks that it is running."""
    running: dict[str, list[str]] = {row.id: [] for row in rows}
    tasks = session.scalars(
        select(TaskRow)
        .join(JobRow, (JobRow.project == TaskRow.project) & (JobRow.id == TaskRow.job))
        .where(
            TaskRow.state == "running",
            TaskRow.attempt == JobRow.attempt,
            JobRow.state == "running",
            TaskRow.worker.in_(list(running)),
        )
        .order_by(TaskRow.project, TaskRow.job, TaskRow.number)
    )
    for task in tasks:
        if task.worker is not None:
            running[task.worker].append(f"{task.project}/{task.job}: {task.file}")
    return [
        WorkerInfo(
            id=row.id,
            host=row.host,
            device=row.device,
            memory_bytes=row.memory_bytes,
            version=row.version,
            started_at=row.started_at,
            heartbeat_at=row.heartbeat_at,
            alive=is_alive(row, now, lease),
            running=tuple(running[row.id]),
        )
        for row in rows
    ]
