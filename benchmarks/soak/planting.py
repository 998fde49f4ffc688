"""Damage done on purpose to a server that was found whole, so that one knows what zeros are worth."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.soak.records import Found
from pydantic import SecretStr
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.blobs import blob_key
from gramfuse_server.clock import system_clock
from gramfuse_server.database import open_database, transaction
from gramfuse_server.settings import Settings
from gramfuse_server.tables import ContributionRow, ModelFileRow, ModelRow, UploadRow

PLANTED: Final = ("a contribution is open again", "a model is gone", "a model is published twice", "a bit is turned")


def plant(found: Found, folder: Path, database_url: str) -> None:
    """Undo an acceptance, take a model away, write a second publication into the log, and turn a bit of a model."""
    gone, twice, turned = _distinct_models(found)
    with _opened(folder, database_url) as session:
        contribution = session.get_one(ContributionRow, found.contributions[0][0])
        session.execute(update(UploadRow).where(UploadRow.id == contribution.upload).values(state="open"))
        session.execute(delete(ModelFileRow).where(ModelFileRow.project == gone[0], ModelFileRow.model == gone[1]))
        session.execute(delete(ModelRow).where(ModelRow.project == gone[0], ModelRow.id == gone[1]))
        sha256 = session.scalars(
            select(ModelFileRow.sha256).where(
                ModelFileRow.project == turned[0],
                ModelFileRow.model == turned[1],
                ModelFileRow.name.endswith(".safetensors"),
            )
        ).first()
        audit_log.append(
            session, at=system_clock(), organization=None, token=None, action="model.publish", subject="/".join(twice)
        )
    blob = folder / "server" / "blobs" / blob_key(str(sha256))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)


def _distinct_models(found: Found) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str]]:
    """Three models of different weights, so that each damage is seen by itself."""
    by_weights = {weights: key for key, weights in found.weights.items()}
    gone, twice, turned, *_ = by_weights.values()
    return gone, twice, turned


@contextmanager
def _opened(folder: Path, database_url: str) -> Iterator[Session]:
    settings = Settings(server_home=folder / "server", database_url=SecretStr(database_url))
    database = open_database(settings.database_url)
    try:
        with transaction(database) as session:
            yield session
    finally:
        database.close()
