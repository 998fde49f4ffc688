"""Sessions of secure sums as requests hold them: the manifest, and what each stage shows the next."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from gramfuse_server.requests.documents import accepted_answers, find_request, progress, request_of
from gramfuse_server.tables import AskedRow, RequestRow, UploadRow
from gramfuse_shared.contract.requests import stage_before, stage_named
from gramfuse_shared.contract.secure import SignedMessage, Stage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import NotFoundError, RequestMalformedError, StateError


def stage_of_request(row: RequestRow) -> Stage:
    """Return the stage that a request asks; raises NotFoundError where it is no stage of a secure sum."""
    stage = stage_named(request_of(row).kind)
    if stage is None:
        msg = f"request {row.id} is of the kind {request_of(row).kind}, no stage of a secure sum"
        raise NotFoundError(msg)
    return stage


def session_of(session: Session, row: RequestRow) -> SessionManifest:
    """Return the manifest of the session that a stage belongs to."""
    stage_of_request(row)
    first = row if row.opened_by is None else session.get_one(RequestRow, (row.project, row.opened_by))
    return SessionManifest.parse(first.session or "")


def before(session: Session, row: RequestRow) -> RequestRow | None:
    """Return the request of the stage before; None of the first."""
    after = request_of(row).after
    return None if after is None else session.get_one(RequestRow, (row.project, after))


def messages_of(session: Session, row: RequestRow) -> tuple[SignedMessage, ...]:
    """Return what was said in a stage, by ascending sender."""
    answers = accepted_answers(session, row)
    return tuple(answer.message for _, answer in sorted(answers.items()) if answer.message is not None)


def shown_in(session: Session, row: RequestRow) -> tuple[SignedMessage, ...]:
    """Return the messages that a stage shows: what was said in the one before."""
    earlier = before(session, row)
    return () if earlier is None else messages_of(session, earlier)


def stages_of(session: Session, row: RequestRow) -> dict[Stage, Sequence[SignedMessage]]:
    """Return what was said in a stage, and in all stages before it."""
    said: dict[Stage, Sequence[SignedMessage]] = {}
    at: RequestRow | None = row
    while at is not None:
        said[stage_of_request(at)] = messages_of(session, at)
        at = before(session, at)
    return said


def require_stage_after(session: Session, project: str, stage: Stage, after: str, now: datetime) -> RequestRow:
    """Return the request that a stage comes after, which has to be complete and of the stage before.

    Raises:
        NotFoundError: there is no such request.
        RequestMalformedError: it is of another stage.
        StateError: it is not complete.
    """
    earlier = find_request(session, project, after)
    wanted = stage_before(stage)
    if request_of(earlier).kind != wanted:
        msg = f"the stage {stage} comes after {wanted}; request {after} is of the kind {request_of(earlier).kind}"
        raise RequestMalformedError(msg)
    state = progress(session, earlier, now)
    if state.state != "complete":
        reason = f": {state.reason}" if state.reason else ""
        msg = f"request {after} is {state.state}{reason}; the next stage begins once it is complete"
        raise StateError(msg, state=state.state)
    return earlier


def forget_words(session: Session, project: str, request: str, *, now: datetime) -> None:
    """Let the files of masked words of a session go, whose sum is merged; the signed messages stay."""
    at: RequestRow | None = find_request(session, project, request)
    while at is not None:
        uploads = select(AskedRow.upload).where(AskedRow.project == project, AskedRow.request == at.id)
        session.execute(
            update(UploadRow)
            .where(UploadRow.id.in_(uploads), UploadRow.delete_after.is_(None))
            .values(delete_after=now)
        )
        at = before(session, at)
