"""Sessions of secure sums as requests hold them: the manifest, and what each stage shows the next."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.requests.documents import accepted_answers, find_request, progress, request_of
from gramfuse_server.standing import standing_contributions
from gramfuse_server.tables import AskedRow, JobRow, RequestRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.recipe import Recipe
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
    if _is_abandoned(session, project, earlier.opened_by or earlier.id, now):
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


def forget_words(session: Session, project: str, request: str, *, now: datetime) -> None:
    """Let the files of masked words of a session go, whose sum is merged; the signed messages stay.

    Those of stages that somebody missed go, too, and those of other sessions of one of these contributions, or answers:
    each is summed once, so no sum of them will be asked for. While another job merges such a sum its words stay.
    """
    row = find_request(session, project, request)
    summed = {signed.message.sender for signed in stages_of(session, row)["masked"]}
    merged = _summed(session_of(session, row), summed)
    merging = _being_merged(session)
    for (owner, opened_by), uploads in _kept_words(session).items():
        if owner == project and (owner, opened_by) not in merging:
            first = session.get_one(RequestRow, (project, opened_by))
            if first.id == row.opened_by or merged & _summed(session_of(session, first)):
                _forget(session, uploads, now)


def forget_abandoned_words(session: Session, now: datetime) -> None:
    """Let the words of sessions go that nobody went on with; one whose sum is being merged is not among them."""
    abandoned = {
        (project, opened_by): uploads
        for (project, opened_by), uploads in _kept_words(session).items()
        if _is_abandoned(session, project, opened_by, now)
    }
    for found, uploads in abandoned.items():
        if found not in _being_merged(session):
            _forget(session, uploads, now)


def require_words(session: Session, row: RequestRow, organizations: Collection[str]) -> None:
    """Require that the words of these members are still here, as the last stage of a session sums them.

    Of a request that is no stage nothing is required.

    Raises:
        StateError: they were deleted, or will be.
    """
    if stage_named(request_of(row).kind) is None:
        return
    masked = row
    while stage_of_request(masked) != "masked":
        masked = before(session, masked) or masked
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


def _kept_words(session: Session) -> dict[tuple[str, str | None], list[str]]:
    """Find the uploads of masked words that are not to be deleted, by project and a session's first request."""
    query = (
        select(RequestRow.project, RequestRow.opened_by, UploadRow.id)
        .join(AskedRow, (AskedRow.project == RequestRow.project) & (AskedRow.request == RequestRow.id))
        .join(UploadRow, UploadRow.id == AskedRow.upload)
        .where(RequestRow.opened_by.is_not(None), UploadRow.delete_after.is_(None))
    )
    found: dict[tuple[str, str | None], list[str]] = {}
    for project, opened_by, upload in session.execute(query):
        found.setdefault((project, opened_by), []).append(upload)
    return found


def _forget(session: Session, uploads: Sequence[str], now: datetime) -> None:
    session.execute(update(UploadRow).where(UploadRow.id.in_(uploads)).values(delete_after=now))


def _summed(manifest: SessionManifest, members: Collection[str] | None = None) -> set[tuple[str, str | None]]:
    """Return what a session sums, of all members or of these: contributions, or what of them answered which request."""
    request = manifest.recipe.request
    joined = [each for each in manifest.members if members is None or each.organization in members]
    return {(each.contribution, request) for each in joined}


def _is_abandoned(session: Session, project: str, opened_by: str | None, now: datetime) -> bool:
    """Tell whether the last deadline of a session is too long ago to go on with it."""
    of_session = (RequestRow.opened_by == opened_by) | (RequestRow.id == opened_by)
    deadlines = select(RequestRow.deadline).where(RequestRow.project == project, of_session)
    return max(session.scalars(deadlines)) + limits.LONGEST_SESSION_PAUSE <= now


def _being_merged(session: Session) -> set[tuple[str, str | None]]:
    """Return the projects and first requests of sessions whose sums unfinished jobs merge."""
    jobs = session.scalars(select(JobRow).where(JobRow.state.in_(UNFINISHED))).all()
    merged = [(job.project, Recipe.parse(job.recipe).request) for job in jobs]
    return {(project, find_request(session, project, request).opened_by) for project, request in merged if request}
