"""Sessions of secure sums as requests hold them: the manifest, what each stage shows the next, which may go on."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.requests.documents import accepted_answers, find_request, progress, request_of
from gramfuse_server.standing import standing_contributions
from gramfuse_server.tables import RequestRow
from gramfuse_shared import limits
from gramfuse_shared.contract.requests import stage_before, stage_named
from gramfuse_shared.contract.secure import MaskedMessage, SignedMessage, Stage, SurvivorsMessage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import NotFoundError, RequestMalformedError, StateError


def stage_of_request(row: RequestRow) -> Stage:
    """Return the stage that a request asks; raises NotFoundError where it is no stage of a secure sum."""
    stage = stage_named(request_of(row).kind)
    if stage is None:
        msg = f"request {row.id} is of the kind {request_of(row).kind}, no stage of a secure sum"
        raise NotFoundError(msg)
    return stage


def is_stage(row: RequestRow) -> bool:
    """Tell whether a request asks a stage of a secure sum."""
    return stage_named(request_of(row).kind) is not None


def session_of(session: Session, row: RequestRow) -> SessionManifest:
    """Return the manifest of the session that a stage belongs to."""
    stage_of_request(row)
    first = row if row.opened_by is None else session.get_one(RequestRow, (row.project, row.opened_by))
    return SessionManifest.parse(first.session or "")


def before(session: Session, row: RequestRow) -> RequestRow | None:
    """Return the request of the stage before; None of the first."""
    after = request_of(row).after
    return None if after is None else session.get_one(RequestRow, (row.project, after))


def back_from(session: Session, row: RequestRow) -> Iterator[RequestRow]:
    """Yield the request of a stage, and those of all stages before it."""
    at: RequestRow | None = row
    while at is not None:
        yield at
        at = before(session, at)


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
    return {stage_of_request(at): messages_of(session, at) for at in back_from(session, row)}


def require_stage_after(session: Session, project: str, stage: Stage, after: str, now: datetime) -> RequestRow:
    """Return the request that a stage comes after, which has to be complete and of the stage before.

    Raises:
        NotFoundError: there is no such request.
        RequestMalformedError: it is of another stage.
        StateError: it is not complete, the session was left for too long, or what it sums does not count any more.
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
    if is_abandoned(session, project, earlier.opened_by or earlier.id, now):
        days = limits.LONGEST_SESSION_PAUSE.days
        msg = f"the session of request {after} was left for more than {days} days; begin another"
        raise StateError(msg)
    require_standing(session, earlier, summed_by(messages_of(session, earlier)))
    return earlier


def summed_by(messages: Sequence[SignedMessage]) -> set[str]:
    """Return whose words are summed by what was said in a stage: the senders', or those that were signed for."""
    names: set[str] = set()
    for signed in messages:
        if isinstance(signed.message, MaskedMessage):
            names.add(signed.message.sender)
        if isinstance(signed.message, SurvivorsMessage):
            names.update(signed.message.body.organizations)
    return names


def require_standing(session: Session, row: RequestRow, organizations: Collection[str]) -> None:
    """Require that contributions of a stage's session are the ones that count, so that their sum may be merged.

    Raises:
        StateError: one of them was withdrawn or replaced. What would be unmasked would be of no use.
    """
    counting = {standing.contribution for standing in standing_contributions(session, row.project)}
    members = session_of(session, row).members
    gone = [
        each.organization
        for each in members
        if each.organization in organizations and each.contribution not in counting
    ]
    if gone:
        msg = (
            f"the contribution of {', '.join(gone)} was withdrawn or replaced, so the sum is not merged, and nothing "
            "more is taken that lets masks come off. Begin another session; if some did, have everybody contribute anew"
        )
        raise StateError(msg, organizations=gone)


def is_abandoned(session: Session, project: str, opened_by: str | None, now: datetime) -> bool:
    """Tell whether the last deadline of a session is too long ago to go on with it."""
    of_session = (RequestRow.opened_by == opened_by) | (RequestRow.id == opened_by)
    deadlines = select(RequestRow.deadline).where(RequestRow.project == project, of_session)
    return max(session.scalars(deadlines)) + limits.LONGEST_SESSION_PAUSE <= now
