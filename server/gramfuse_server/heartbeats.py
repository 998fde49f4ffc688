"""Who works: a row per worker, kept fresh by its heartbeat, and read to find the ones that died."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from gramfuse_server.tables import WorkerRow

PAUSE: Final = timedelta(seconds=2)
"""Looks that are further apart than this, and than half a lease, have missed something."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a worker tells about itself."""

    name: str
    device: str
    memory_bytes: int
    version: str


def enter(session: Session, worker: str, host: Host, now: datetime) -> None:
    """Note a new worker."""
    session.add(
        WorkerRow(
            id=worker,
            host=host.name,
            device=host.device,
            memory_bytes=host.memory_bytes,
            version=host.version,
            started_at=now,
            heartbeat_at=now,
        )
    )
    session.flush()


def beat(session: Session, worker: str, now: datetime) -> None:
    """Note that a worker lives."""
    session.execute(update(WorkerRow).where(WorkerRow.id == worker).values(heartbeat_at=now))


def leave(session: Session, worker: str, now: datetime) -> None:
    """Note that a worker ends in good order: what it left pending is free at once."""
    session.execute(update(WorkerRow).where(WorkerRow.id == worker).values(stopped_at=now))


def is_alive(row: WorkerRow, now: datetime, lease: timedelta) -> bool:
    """Tell whether a worker is alive as far as its row tells; for people, since clocks differ."""
    return row.stopped_at is None and now - row.heartbeat_at <= lease


def is_any_alive(session: Session, now: datetime, lease: timedelta) -> bool:
    """Tell whether some worker is alive, as `is_alive` does."""
    running = select(WorkerRow).where(WorkerRow.stopped_at.is_(None), WorkerRow.heartbeat_at >= now - lease)
    return session.scalar(select(running.exists())) is True


def last_beats(session: Session, workers: Iterable[str]) -> dict[str, datetime | None]:
    """Return the last heartbeat of each worker; None of one that ended in good order or is not known."""
    wanted = set(workers)
    rows = session.scalars(select(WorkerRow).where(WorkerRow.id.in_(wanted)))
    known = {row.id: None if row.stopped_at else row.heartbeat_at for row in rows}
    return {worker: known.get(worker) for worker in wanted}


@dataclass(slots=True)
class Watch:
    """Finds dead workers without comparing clocks of two machines: a heartbeat must change within the lease.

    Whoever looks may itself have stood still, or had no database, and then everybody's heartbeat stood still for it:
    after such a pause all have their lease again. So a database that comes back finds no worker dead.
    """

    lease: timedelta
    _looked: float | None = None
    _seen: dict[str, tuple[datetime, float]] = field(default_factory=dict)

    def dead(self, beats: Mapping[str, datetime | None], monotonic: float) -> list[str]:
        """Return the workers that ended, or whose heartbeat has stood still for the lease.

        Args:
            beats: last heartbeats, see `last_beats`.
            monotonic: the observer's own clock, in seconds.
        """
        dead = []
        if self._looked is not None and monotonic - self._looked > max(self.lease / 2, PAUSE).total_seconds():
            self._seen = {}
        self._looked = monotonic
        for worker, at in sorted(beats.items()):
            if at is None:
                dead.append(worker)
                continue
            before, since = self._seen.get(worker, (None, monotonic))
            if before != at:
                since = monotonic
            self._seen[worker] = (at, since)
            if monotonic - since >= self.lease.total_seconds():
                dead.append(worker)
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in beats}
        return dead
