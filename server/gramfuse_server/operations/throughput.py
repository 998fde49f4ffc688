"""What a server gets done, hour by hour, from what its rows say of their ends."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, case, func, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from gramfuse_server.tables import AttemptRow, ModelRow, UploadRow
from gramfuse_shared.contract.operators import HourOfWork, Throughput

HOURS: Final = 24
MAX_HOURS: Final = 7 * 24
_HOUR: Final = timedelta(hours=1)


def throughput(session: Session, now: datetime, hours: int = HOURS) -> Throughput:
    """Add up what ended within the last hours, the present one among them."""
    present = now.replace(minute=0, second=0, microsecond=0)
    begins = [present - number * _HOUR for number in reversed(range(hours))]
    merges = _by_hour(session, begins, AttemptRow.finished_at, func.count(), AttemptRow.state == "succeeded")
    failures = _by_hour(session, begins, AttemptRow.finished_at, func.count(), AttemptRow.state == "failed")
    received = _by_hour(session, begins, UploadRow.sealed_at, func.sum(UploadRow.bytes))
    published = _by_hour(session, begins, ModelRow.created_at, func.sum(ModelRow.bytes))
    return Throughput(
        hours=tuple(
            HourOfWork(
                begins_at=at,
                merges=merges.get(number, 0),
                failures=failures.get(number, 0),
                received_bytes=received.get(number, 0),
                published_bytes=published.get(number, 0),
            )
            for number, at in enumerate(begins)
        )
    )


def _by_hour(
    session: Session,
    begins: Sequence[datetime],
    at: InstrumentedAttribute[Any],
    total: ColumnElement[Any],
    *where: ColumnElement[bool],
) -> dict[int, int]:
    """Add up by the hour that a row's time lies in, in one look at the table."""
    # whole hours as a CASE: how a time is cut off is told to each database in another way
    number = case(
        *((at >= begin, literal(number)) for number, begin in reversed(list(enumerate(begins)))), else_=None
    ).label("number")
    rows = session.execute(select(number, total).where(at >= begins[0], *where).group_by(number))
    return {found: int(count) for found, count in rows}
