"""Delete bytes that have no further use: parts of closed uploads, complete files that nothing names, sums of attempts
that are over, and what writers that were killed left.

Complete files are named by uploads that were accepted and whose bytes are not given up, by models that are not deleted,
and by finished tasks of the present attempts of unfinished jobs. An upload that only announces a file does not name it:
its worker writes the bytes again if they went. How a sweep and a writer of the same bytes meet is told in `keeping`.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice
from time import monotonic
from typing import Final

import obstore
from sqlalchemy import ColumnElement, exists, or_, select, update

from gramfuse_server.blobs import COMPLETE, PARTS, SUMS, Blobs, blob_key, sums_key
from gramfuse_server.database import Database, insert_if_absent, reading, transaction
from gramfuse_server.intake.offers import forget_offers
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.keeping import CONDEMNATION_HOLDS, CONDEMNATION_LAPSES, locked
from gramfuse_server.tables import BlobRow, JobRow, ModelFileRow, ModelRow, TaskRow, UploadFileRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.identifiers import DIGEST_PATTERN

_TAKING_PARTS: Final = ("open", "sealed")
_LONGEST_WRITE: Final = timedelta(hours=24)
_AT_ONCE: Final = 100
_LISTED_AT_ONCE: Final = 1_000


def delete_spent_bytes(database: Database, blobs: Blobs, now: datetime, *, grace: timedelta = limits.BLOB_GRACE) -> int:
    """Delete what is due; return how many files. Safe to repeat and to race.

    `grace` is how old a claim must be before a file that nothing names is deleted.
    """
    unfinished = blobs.delete_unfinished(now - _LONGEST_WRITE)
    _give_up(database, now)
    return (
        _delete_parts(database, blobs)
        + _delete_unnamed(database, blobs, now, grace=grace)
        + _delete_sums(database, blobs)
        + unfinished
    )


def adopt_strays(database: Database, blobs: Blobs, now: datetime) -> int:
    """Claim complete files that the account does not know, so that sweeps delete them unless something names them.

    There are some where a database was restored that is older than its store, or where a version that claimed nothing
    was killed. Their age counts from now on: whoever sees that the store is another database's has the grace period.
    """
    adopted = 0
    listed = blobs.sizes(COMPLETE)
    while sizes := {key.removeprefix(COMPLETE): size for key, size in islice(listed, _LISTED_AT_ONCE)}:
        digests = [sha256 for sha256 in sizes if re.fullmatch(DIGEST_PATTERN, sha256)]
        with reading(database) as session:
            known = set(session.scalars(select(BlobRow.sha256).where(BlobRow.sha256.in_(digests))))
        strays = [sha256 for sha256 in digests if sha256 not in known and blobs.size(blob_key(sha256)) is not None]
        if strays:
            with transaction(database) as session:
                for sha256 in strays:
                    values = {"sha256": sha256, "bytes": sizes[sha256], "created_at": now, "claimed_at": now}
                    adopted += insert_if_absent(session, BlobRow, values)
    return adopted


def _give_up(database: Database, now: datetime) -> None:
    """Let uploads and models that are due name their files no more."""
    with transaction(database) as session:
        session.execute(
            update(UploadRow)
            .where(UploadRow.delete_after <= now, UploadRow.deleted_at.is_(None))
            .values(deleted_at=now)
        )
        session.execute(update(ModelRow).where(ModelRow.delete_after <= now).values(delete_after=None))
        forget_offers(session)


def _delete_unnamed(database: Database, blobs: Blobs, now: datetime, *, grace: timedelta) -> int:
    spent = is_spent(now, grace)
    with reading(database) as session:
        found = session.scalars(select(BlobRow.sha256).where(spent)).all()
    batches = [found[start : start + _AT_ONCE] for start in range(0, len(found), _AT_ONCE)]
    return sum(delete_files(database, blobs, batch, spent, now) for batch in batches)


def delete_files(
    database: Database,
    blobs: Blobs,
    digests: Sequence[str],
    spent: ColumnElement[bool],
    now: datetime,
) -> int:
    """Condemn files that are still spent, delete their bytes, forget them."""
    began = monotonic()
    with transaction(database) as session:
        held = session.scalars(
            select(BlobRow.sha256).where(BlobRow.sha256.in_(digests)).with_for_update(skip_locked=True)
        ).all()
        # a second query, which sees what those committed who held the rows until now
        condemned = session.scalars(select(BlobRow.sha256).where(BlobRow.sha256.in_(held), spent)).all()
        session.execute(update(BlobRow).where(BlobRow.sha256.in_(condemned)).values(condemned_at=now))
    gone = []
    for sha256 in condemned:
        if monotonic() - began > CONDEMNATION_HOLDS.total_seconds():
            break
        blobs.delete(blob_key(sha256))
        gone.append(sha256)
    with transaction(database) as session:
        for row in locked(session, gone):
            if row.condemned_at == now:
                session.delete(row)
    return len(gone)


def is_spent(now: datetime, grace: timedelta) -> ColumnElement[bool]:
    """Whether nothing names a file and no young claim holds it, or a sweep ended that was deleting it."""
    withdrawn_when_accepted = (UploadRow.state == "withdrawn") & UploadRow.decided_at.is_not(None)
    by_upload = (
        exists()
        .where(UploadFileRow.sha256 == BlobRow.sha256, UploadRow.id == UploadFileRow.upload)
        .where(UploadRow.deleted_at.is_(None), or_(UploadRow.state == "accepted", withdrawn_when_accepted))
    )
    by_model = (
        exists()
        .where(ModelFileRow.sha256 == BlobRow.sha256)
        .where(ModelRow.project == ModelFileRow.project, ModelRow.id == ModelFileRow.model)
        .where(ModelRow.deleted_at.is_(None))
    )
    by_tasks = (
        select(TaskRow.sha256)
        .join(JobRow, (JobRow.project == TaskRow.project) & (JobRow.id == TaskRow.job))
        .where(TaskRow.attempt == JobRow.attempt, JobRow.state.in_(UNFINISHED), TaskRow.sha256.is_not(None))
    )
    unnamed = ~by_upload & ~by_model & BlobRow.sha256.not_in(by_tasks)
    unclaimed = or_(BlobRow.claimed_at.is_(None), BlobRow.claimed_at < now - grace)
    return or_(BlobRow.condemned_at < now - CONDEMNATION_LAPSES, BlobRow.condemned_at.is_(None) & unclaimed & unnamed)


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
    folders = [str(prefix) for prefix in obstore.list_with_delimiter(blobs.store, prefix=PARTS)["common_prefixes"]]
    uploads = {folder.rstrip("/").rpartition("/")[2]: folder for folder in folders}
    if not uploads:
        return 0
    with reading(database) as session:
        needed = set(
            session.scalars(select(UploadRow.id).where(UploadRow.id.in_(uploads), UploadRow.state.in_(_TAKING_PARTS)))
        )
    return sum(blobs.delete_prefix(f"{PARTS}{upload}/") for upload in uploads.keys() - needed)
