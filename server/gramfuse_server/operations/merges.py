"""Jobs and models as operators see them: every attempt, and a published model's card."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.merging.documents import job_documents, model_documents
from gramfuse_server.tables import AttemptRow, JobRow, ModelFileRow, ModelRow
from gramfuse_shared.contract.http_api import JobError, JobState, Model
from gramfuse_shared.contract.operators import AdminJob, AdminModel, JobAttempt, Priority
from gramfuse_shared.contract.receipt import CARD_FILE_NAME

MAX_CARD_BYTES: Final = 256 * 1024
"""Of a longer card this much is shown."""


def job_with_attempts(session: Session, row: JobRow) -> AdminJob:
    """Describe a job with all of its attempts."""
    attempts = session.scalars(
        select(AttemptRow)
        .where(AttemptRow.project == row.project, AttemptRow.job == row.id)
        .order_by(AttemptRow.number)
    )
    (document,) = job_documents(session, [row])
    return AdminJob(
        **dict(document),
        priority=cast("Priority", row.priority),
        attempts=tuple(_attempt(attempt) for attempt in attempts),
    )


def admin_models(session: Session, rows: Sequence[ModelRow], now: datetime) -> list[Model]:
    """Describe models; why a release gate holds one back tells scores, which are the members' own."""
    return [
        document
        if document.release is None
        else document.model_copy(update={"release": document.release.model_copy(update={"reason": None})})
        for document in model_documents(session, rows, now)
    ]


def find_card(session: Session, model: Model) -> ModelFileRow | None:
    """Return the file of a model's card; None of one that is deleted or held back, whose files nobody is given."""
    if model.deleted_at is not None or (model.release is not None and model.release.state != "released"):
        return None
    return session.get(ModelFileRow, (model.project, model.id, CARD_FILE_NAME))


def with_card(model: Model, card: ModelFileRow | None, blobs: Blobs) -> AdminModel:
    """Read the card and put it to its model. Call it outside of a transaction: it asks the blob store."""
    if card is None:
        return AdminModel(**dict(model))
    return AdminModel(**dict(model), card=read_card(card, blobs))


def read_card(card: ModelFileRow, blobs: Blobs) -> str | None:
    """Read a card, of a long one its beginning; None where it is gone. Call it outside of a transaction, too."""
    try:
        content = blobs.read(blob_key(card.sha256), 0, min(card.bytes, MAX_CARD_BYTES))
    except FileNotFoundError:  # it was swept a moment ago
        return None
    return content.decode("utf-8", errors="replace")


def _attempt(row: AttemptRow) -> JobAttempt:
    return JobAttempt(
        number=row.number,
        state=cast("JobState", row.state),
        worker=row.worker,
        error=JobError(code=row.error_code, message=row.error_message or "") if row.error_code else None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
