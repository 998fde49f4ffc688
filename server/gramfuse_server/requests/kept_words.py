"""How long a session's masked words are kept: while a sum of them may be merged, and no longer."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.requests.documents import find_request
from gramfuse_server.requests.sessions import (
    back_from,
    is_abandoned,
    is_stage,
    session_of,
    stage_of_request,
    stages_of,
)
from gramfuse_server.tables import AskedRow, JobRow, RequestRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import StateError


def forget_words(session: Session, project: str, request: str, *, now: datetime) -> None:
    """Let the files of masked words of a session go, whose sum is merged; the signed messages stay.

    Those of stages that somebody missed go, too, and those of other sessions of one of these contributions, or answers:
    each is summed once, so no sum of them will be asked for. While another job merges such a sum its words stay.
    """
    row = find_request(session, project, request)
    summed = {signed.message.sender for signed in stages_of(session, row)["masked"]}
    merged = _summed(session_of(session, row), summed)
    merging = _being_merged(session)
    for found, uploads in _kept_words(session, project).items():
        if found not in merging:
            first = session.get_one(RequestRow, found)
            if first.id == row.opened_by or merged & _summed(session_of(session, first)):
                _forget(session, uploads, now)


def forget_abandoned_words(session: Session, now: datetime) -> None:
    """Let the words of sessions go that nobody went on with; one whose sum is being merged is not among them."""
    merging = _being_merged(session)
    for (project, opened_by), uploads in _kept_words(session).items():
        if (project, opened_by) not in merging and is_abandoned(session, project, opened_by, now):
            _forget(session, uploads, now)


def require_words(session: Session, row: RequestRow, organizations: Collection[str]) -> None:
    """Require that the words of these members are still here, as the last stage of a session sums them.

    Of a request that is no stage nothing is required.

    Raises:
        StateError: they were deleted, or will be.
    """
    if not is_stage(row):
        return
    masked = next(at for at in back_from(session, row) if stage_of_request(at) == "masked")
    query = (
        select(AskedRow.organization)
        .join(UploadRow, UploadRow.id == AskedRow.upload)
        .where(AskedRow.project == row.project, AskedRow.request == masked.id, UploadRow.delete_after.is_(None))
    )
    if not set(organizations) <= set(session.scalars(query)):
        msg = (
            "the masked words of this session were deleted: its sum was merged, or nobody asked for it within "
            f"{limits.LONGEST_SESSION_PAUSE.days} days. Have everybody contribute anew and begin another"
        )
        raise StateError(msg)


def _kept_words(session: Session, project: str | None = None) -> dict[tuple[str, str | None], list[str]]:
    """Find uploads of masked words that are not to be deleted, of one project or all: by project and first request."""
    query = (
        select(RequestRow.project, RequestRow.opened_by, UploadRow.id)
        .join(AskedRow, (AskedRow.project == RequestRow.project) & (AskedRow.request == RequestRow.id))
        .join(UploadRow, UploadRow.id == AskedRow.upload)
        .where(RequestRow.opened_by.is_not(None), UploadRow.delete_after.is_(None))
    )
    if project is not None:
        query = query.where(RequestRow.project == project)
    found: dict[tuple[str, str | None], list[str]] = {}
    for owner, opened_by, upload in session.execute(query):
        found.setdefault((owner, opened_by), []).append(upload)
    return found


def _forget(session: Session, uploads: Sequence[str], now: datetime) -> None:
    session.execute(update(UploadRow).where(UploadRow.id.in_(uploads)).values(delete_after=now))


def _summed(manifest: SessionManifest, members: Collection[str] | None = None) -> set[tuple[str, str | None]]:
    """Return what a session sums, of all members or of these: contributions, or what of them answered which request."""
    request = manifest.recipe.request
    joined = [each for each in manifest.members if members is None or each.organization in members]
    return {(each.contribution, request) for each in joined}


def _being_merged(session: Session) -> set[tuple[str, str | None]]:
    """Return the projects and first requests of sessions whose sums unfinished jobs merge."""
    jobs = session.scalars(select(JobRow).where(JobRow.state.in_(UNFINISHED))).all()
    merged = [(job.project, Recipe.parse(job.recipe).request) for job in jobs]
    return {(project, find_request(session, project, request).opened_by) for project, request in merged if request}
