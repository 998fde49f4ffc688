"""Writing complete files so that a sweep never deletes one that is about to be named, and nothing unnamed stays.

A file is *claimed*, then written, then *named*. The claim is its row in the account of files (`BlobRow`), committed
before the first byte; naming happens in the transaction that makes the file part of something: an accepted upload, a
finished task, a model. Whatever ends in between leaves a claim, and the sweep deletes what was claimed longer than the
grace period ago and is named by nothing. So no byte under `sha256/` is without a row, and none stays for ever.

The sweep deletes in three steps as well. It *condemns* rows, in one transaction that holds them and looks again whether
anything names them; it deletes the bytes; it deletes the rows. What can meet:

1. A writer claims what is condemned: it waits until the row is gone and writes the bytes anew. It never trusts bytes
   that it finds while their deletion may be under way.
2. The sweep meets a claim that is not older than the grace period: it leaves it alone. Bytes that the writer found and
   did not write again are safe, because the claim renewed their age.
3. A writer slept between claim and naming for longer than the grace period, and the sweep deleted its bytes: naming
   finds no row, or a condemned one, and raises; the work is repeated. Thus correctness does not hang on the length of
   the grace period, only work done twice does.
4. The sweep meets a naming that has not committed yet: rows that are held are skipped; rows that were held until just
   now are looked at with a new snapshot.
5. A sweep is killed behind the condemnation: after `CONDEMNATION_LAPSES` any other finishes it. The first one deletes
   nothing later than `CONDEMNATION_HOLDS` after its commit, by its monotonic clock.

What remains: a process that is suspended between that look at the clock and the deletion itself, for more than
`CONDEMNATION_LAPSES`, while the same bytes are written anew. A store that deletes under a condition would close it;
a folder and S3's protocol do not.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, insert_if_absent, transaction
from gramfuse_server.tables import BlobRow
from gramfuse_shared.errors import UnavailableError

CONDEMNATION_HOLDS: Final = timedelta(minutes=1)
"""For how long whoever condemned a file may delete it; the store's own repetitions come on top, three minutes."""
CONDEMNATION_LAPSES: Final = timedelta(minutes=10)
"""After which a condemnation is another sweep's to carry out."""
_LOOK_SECONDS: Final = 0.2

_log = structlog.get_logger(__name__)


def keep(
    database: Database,
    blobs: Blobs,
    files: Mapping[str, Path | bytes],
    *,
    clock: Clock,
    patience: timedelta = CONDEMNATION_LAPSES * 1.5,
) -> None:
    """Claim complete files by their digests and write them, unless they are there and whole. Name them next.

    Raises:
        UnavailableError: a sweep is deleting one of them, and is not done when patience ends.
    """
    sizes = {
        sha256: content.stat().st_size if isinstance(content, Path) else len(content)
        for sha256, content in files.items()
    }
    began = time.monotonic()
    while not _claim(database, sizes, clock()):
        if time.monotonic() - began > patience.total_seconds():
            msg = "a file that is to be written is being deleted by a sweep that does not end; try again later"
            raise UnavailableError(msg)
        time.sleep(_LOOK_SECONDS)
    for sha256, content in files.items():
        if blobs.put_complete(sha256, content):
            _log.warning("a damaged file was replaced", file=blob_key(sha256), bytes=sizes[sha256])


def name(session: Session, digests: Collection[str]) -> None:
    """Require that files are kept, in the transaction that names them; their claims are fulfilled.

    Raises:
        UnavailableError: one was swept meanwhile; it has to be written again.
    """
    wanted = set(digests)
    rows = locked(session, wanted)
    kept = {row.sha256 for row in rows if row.condemned_at is None}
    if kept != wanted:
        msg = f"{len(wanted - kept)} of {len(wanted)} files were deleted before anything named them; try again"
        raise UnavailableError(msg)
    for row in rows:
        row.claimed_at = None


def let_go(session: Session, digests: Collection[str]) -> None:
    """Give claims back whose files nobody will name, so that the sweep need not wait. Other writers' are redone."""
    for row in locked(session, digests):
        row.claimed_at = None


def locked(session: Session, digests: Collection[str]) -> Sequence[BlobRow]:
    """Return files' rows, held until the commit. Everybody who waits for several waits in this order."""
    return session.scalars(
        select(BlobRow)
        .where(BlobRow.sha256.in_(set(digests)))
        .order_by(BlobRow.sha256)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()


def _claim(database: Database, sizes: Mapping[str, int], now: datetime) -> bool:
    """Claim all files; False where one of them is condemned."""
    with transaction(database) as session:
        for sha256 in sorted(sizes):
            insert_if_absent(
                session,
                BlobRow,
                {"sha256": sha256, "bytes": sizes[sha256], "created_at": now, "claimed_at": now},
            )
            rows = locked(session, [sha256])
            if not rows or rows[0].condemned_at is not None:
                return False
            rows[0].claimed_at = now
    return True
