"""Delete bytes that have no further use: parts of closed uploads, withdrawn contributions, deleted models, and what
writers that were killed left.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import obstore
from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from gramfuse_server.blobs import SUMS, Blobs, blob_key, sums_key
from gramfuse_server.database import Database, reading, transaction
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.tables import BlobRow, JobRow, ModelFileRow, ModelRow, TaskRow, UploadFileRow, UploadRow

_PARTS: Final = "uploads/"
_TAKING_PARTS: Final = ("open", "sealed")
_LONGEST_WRITE: Final = timedelta(hours=24)


def delete_spent_bytes(database: Database, blobs: Blobs, now: datetime) -> int:
    """Delete what is due; return how many files. Safe to repeat and to race."""
    unfinished = blobs.delete_unfinished(now - _LONGEST_WRITE)
    return (
        _delete_parts(database, blobs)
        + _delete_files(database, blobs, now)
        + _delete_sums(database, blobs)
        + unfinished
    )


def _delete_sums(database: Database, blobs: Blobs) -> int:
    """Delete the sums of attempts that are over: the model is published, or another attempt makes them anew."""
    keys = list(blobs.keys(SUMS))
    with reading(database) as session:
        needed = {
            sums_key(row.project, row.id, row.attempt)
            for row in session.scalars(select(JobRow).where(JobRow.state.in_(UNFINISHED)))
        }
    spent = [key for key in keys if key not in needed]
    for key in spent:
        blobs.delete(key)
    return len(spent)


def _delete_parts(database: Database, blobs: Blobs) -> int:
    """Delete the parts of every upload that takes none any more: they are assembled, or of no use.

    The store is asked which uploads have parts, so that nothing leaks when a process ends between two steps.
    """
    folders = [str(prefix) for prefix in obstore.list_with_delimiter(blobs.store, prefix=_PARTS)["common_prefixes"]]
    uploads = {folder.rstrip("/").rpartition("/")[2]: folder for folder in folders}
    if not uploads:
        return 0
    with reading(database) as session:
        needed = set(
            session.scalars(select(UploadRow.id).where(UploadRow.id.in_(uploads), UploadRow.state.in_(_TAKING_PARTS)))
        )
    return sum(blobs.delete_prefix(f"{_PARTS}{upload}/") for upload in uploads.keys() - needed)


def _delete_files(database: Database, blobs: Blobs, now: datetime) -> int:
    """Delete the files of uploads and models that are due, unless something else names the same bytes.

    Bytes go before rows say so: a process that ends in between leaves work for the next sweep, never bytes behind.
    """
    with reading(database) as session:
        uploads = session.scalars(
            select(UploadRow.id).where(UploadRow.delete_after <= now, UploadRow.deleted_at.is_(None))
        ).all()
        models = [
            (row.project, row.id) for row in session.scalars(select(ModelRow).where(ModelRow.delete_after <= now))
        ]
        spent = _only_named_by(session, uploads, models)
    for sha256 in spent:
        blobs.delete(blob_key(sha256))
    with transaction(database) as session:
        session.execute(delete(BlobRow).where(BlobRow.sha256.in_(spent)))
        session.execute(update(UploadRow).where(UploadRow.id.in_(uploads)).values(deleted_at=now))
        for project, model in models:
            session.get_one(ModelRow, (project, model)).delete_after = None
    return len(spent)


def _only_named_by(session: Session, uploads: Sequence[str], models: Sequence[tuple[str, str]]) -> list[str]:
    named = set(session.scalars(select(UploadFileRow.sha256).where(UploadFileRow.upload.in_(uploads))))
    key = tuple_(ModelFileRow.project, ModelFileRow.model)
    if models:
        named.update(session.scalars(select(ModelFileRow.sha256).where(key.in_(models))))
    if not named:
        return []
    others = (
        select(UploadFileRow.sha256)
        .join(UploadRow, UploadRow.id == UploadFileRow.upload)
        .where(UploadRow.deleted_at.is_(None), UploadRow.id.not_in(uploads)),
        select(ModelFileRow.sha256)
        .join(ModelRow, (ModelRow.project == ModelFileRow.project) & (ModelRow.id == ModelFileRow.model))
        .where(ModelRow.deleted_at.is_(None)),
        select(TaskRow.sha256)
        .join(JobRow, (JobRow.project == TaskRow.project) & (JobRow.id == TaskRow.job))
        .where(JobRow.state.in_(UNFINISHED)),
    )
    for query in others:
        named.difference_update(session.scalars(query))
    return sorted(named)
