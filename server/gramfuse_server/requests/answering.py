"""Answer: what is checked before an answer counts, or a byte of its files travels."""

from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, require_accepted_policy
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.intake.projects import base_of
from gramfuse_server.intake.uploads import create_upload, shown_state
from gramfuse_server.requests.documents import progress, request_of
from gramfuse_server.requests.sessions import require_standing, session_of, shown_in, stage_of_request, summed_by
from gramfuse_server.settings import Settings
from gramfuse_server.tables import AskedRow, ProjectRow, RequestRow, UploadRow
from gramfuse_shared.contract.answer_rules import require_answer_allowed
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.rules import require_statistics_architecture
from gramfuse_shared.errors import (
    ConflictError,
    NotFoundError,
    PolicyNotAcceptedError,
    RequestMalformedError,
    RoleRequiredError,
    StateError,
)
from gramfuse_shared.secure.chain import require_next

_FAILED = frozenset({"rejected", "expired"})


def own_answer(session: Session, caller: Caller, row: RequestRow, organization: str) -> AskedRow:
    """Return the place of the caller's own answer.

    Raises:
        RoleRequiredError: it is another organization's.
        NotFoundError: the request does not ask the organization.
    """
    if organization != caller.organization:
        msg = f"the answer is {organization}'s; only that organization gives it"
        raise RoleRequiredError(msg)
    found = session.get(AskedRow, (row.project, row.id, organization))
    if found is None:
        msg = f"request {row.id} does not ask {organization}"
        raise NotFoundError(msg)
    return found


def answer_of(place: AskedRow) -> Answer:
    """Return the answer that was given; raises NotFoundError where there is none."""
    if place.answer is None:
        msg = f"{place.organization} has not answered {place.request}"
        raise NotFoundError(msg)
    return Answer.parse(place.answer)


def require_in_time(row: RequestRow, now: datetime) -> None:
    """Require that a request's deadline is not over.

    Raises:
        StateError: it is.
    """
    if now >= row.deadline:
        msg = f"the deadline of request {row.id} was {row.deadline:%Y-%m-%d %H:%M} UTC"
        raise StateError(msg)


def answer_request(
    session: Session,
    caller: Caller,
    project: ProjectRow,
    row: RequestRow,
    answer: Answer,
    *,
    settings: Settings,
    now: datetime,
) -> tuple[AskedRow, bool]:
    """Take an answer, or find it; tell whether it is new. Lock the project first.

    Checked in this order:
      1. it answers this request of this project for the caller's organization, which is asked,
      2. an existing one is returned as it is; one that was rejected or expired is replaced,
      3. the request is open,
      4. the current policy is accepted, and the answer was made under it,
      5. it answers what was asked, and the policy allows all of it to leave,
      6. its statistics fit the base; a message of a secure sum is signed, answers the ones of the stage before, and is
         about contributions that still count,
      7. the quota has room.

    Raises:
        RequestMalformedError, RoleRequiredError, NotFoundError: 1.
        ConflictError: 2, another answer was given.
        StateError: 3, 6.
        PolicyNotAcceptedError: 4.
        PolicyViolationError, RequestMalformedError, ArchitectureMismatchError: 5, 6.
        SecureSessionRefusedError, SignatureInvalidError: 6.
        QuotaExceededError: 7.
    """
    # 1.
    if (answer.project, answer.request) != (project.id, row.id):
        msg = f"the answer is to {answer.request} in {answer.project}, not to {row.id} in {project.id}"
        raise RequestMalformedError(msg)
    place = own_answer(session, caller, row, answer.organization)
    # 2.
    document = answer.canonical().decode()
    upload = None if place.upload is None else session.get_one(UploadRow, place.upload)
    if place.answer is not None and (upload is None or shown_state(upload, now) not in _FAILED):
        if place.answer != document:
            msg = f"{place.organization} has answered {row.id} already, and otherwise; an answer is given once"
            raise ConflictError(msg)
        return place, False
    # 3.
    state = progress(session, row, now).state
    if state != "open":
        msg = f"request {row.id} is {state}; it takes no answers any more"
        raise StateError(msg, state=state)
    require_in_time(row, now)
    # 4.
    require_accepted_policy(session, caller, project)
    policy = current_policy(session, project)
    if (answer.policy.version, answer.policy.digest) != (project.policy_version, policy.content_digest()):
        msg = f"the answer was made under version {answer.policy.version}, the current one is {project.policy_version}"
        raise PolicyNotAcceptedError(msg, project=project.id, version=project.policy_version)
    # 5.
    asked = request_of(row)
    base = base_of(project)
    require_answer_allowed(answer, asked, policy, base)
    # 6.
    if answer.statistics is not None:
        require_statistics_architecture(answer.statistics, base)
    if answer.message is not None:
        secured, stage, shown = session_of(session, row), stage_of_request(row), shown_in(session, row)
        require_standing(session, row, summed_by(shown) | {place.organization})
        require_next(answer.message, secured, stage, place.organization, shown)
    # 7.
    place.upload = None
    if answer.files:
        place.upload = create_upload(
            session, kind="answer", project=project.id, files=answer.files, settings=settings, now=now
        ).id
    place.answer, place.answered_at = document, now
    session.flush()
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="answer.create",
        subject=f"{project.id}/{row.id}",
        details={"kind": asked.kind, "answer": answer.content_digest()},
    )
    return place, True
