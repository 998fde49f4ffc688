"""Whether a blob store is the one in which a database names its files: not another, nor an empty disk in its place.

Whoever works with the wrong store finds no part of any upload and no file of any merge. A worker would reject what is
sent, and whoever sent it could not know why; an API would take parts that no worker finds. So neither starts.
"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import structlog
from obstore.exceptions import BaseError
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import schema
from gramfuse_server.blobs import Blobs, blob_key, open_blobs, part_key
from gramfuse_server.database import Database, reading
from gramfuse_server.database_key import require_own_key
from gramfuse_server.settings import Settings
from gramfuse_server.tables import BlobRow, UploadPartRow, UploadRow
from gramfuse_shared.errors import ConfigurationError

LOOKED_FOR: Final = 5
"""So many files of a kind are looked for until one is found."""
ADVICE: Final = "is GRAMFUSE_BLOBS what the API has, is the disk mounted?"

_log = structlog.get_logger(__name__)


def describe_store(settings: Settings) -> str:
    """Name the blob store without anything that a URL could hold beside its place."""
    parts = urlsplit(settings.blobs)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def require_own_key_and_store(settings: Settings) -> None:
    """Require of whoever is about to start that receipt key and blob store are this database's.

    Raises:
        ConfigurationError: one is not, a setting does not work, or the database is of another version.
    """
    with schema.opened(settings.database_url) as database:
        with reading(database) as session:
            require_own_key(session, settings.receipt_key)
        require_own_store(database, settings)


def require_own_store(database: Database, settings: Settings) -> None:
    """Require that the store has a file of this database's, if that names any; one that does not answer may be it.

    Raises:
        ConfigurationError: it has none of those that were looked for.
    """
    try:
        missing = count_missing(database, open_blobs(settings.blobs, persistence="hardly"))
    except BaseError as error:
        reason = str(error).partition("\n")[0]
        _log.warning("the blob store does not say whether it is this database's", reason=reason)
        return
    if missing:
        raise ConfigurationError(f"{describe_missing(settings, missing)}: {ADVICE}")


def describe_missing(settings: Settings, missing: int) -> str:
    """Say that nothing was found."""
    place = describe_store(settings)
    return f"the store {place} has none of the newest and oldest {missing} files that this database names"


def count_missing(database: Database, blobs: Blobs | None) -> int:
    """Return 0 where the store holds one of the files that are looked for, else how many they are.

    One is enough, and a single file says nothing: what is lost is `gramfuse-server verify`'s to tell, and stops nobody.
    In a store that is the right one this is a query and a question.

    Raises:
        BaseError of obstore: the store does not answer.
    """
    keys: Sequence[str] = ()
    for _ in range(2):  # parts and files go while one looks: what is missing twice was never there
        with reading(database) as session:
            keys = _names(session)
        if len(keys) <= 1 or (blobs is not None and any(blobs.size(key) is not None for key in keys)):
            return 0
    return len(keys)


def _names(session: Session) -> Sequence[str]:
    """Name the newest files, the oldest, in case the store was restored from a copy, and parts that came last."""
    named = select(BlobRow.sha256).where(BlobRow.claimed_at.is_(None), BlobRow.condemned_at.is_(None))
    newest = session.scalars(named.order_by(BlobRow.created_at.desc(), BlobRow.sha256).limit(LOOKED_FOR)).all()
    oldest = session.scalars(named.order_by(BlobRow.created_at, BlobRow.sha256).limit(LOOKED_FOR)).all()
    parts = session.scalars(
        select(UploadPartRow)
        .join(UploadRow, UploadRow.id == UploadPartRow.upload)
        .where(UploadRow.state.in_(("open", "sealed")))
        .order_by(UploadPartRow.received_at.desc())
        .limit(LOOKED_FOR)
    ).all()
    files = [blob_key(sha256) for sha256 in (*newest, *oldest)]
    return list(
        dict.fromkeys([*files, *(part_key(part.upload, part.file, part.number, part.sha256) for part in parts)])
    )
