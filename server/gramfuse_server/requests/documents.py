"""Requests and answers as the API shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from gramfuse_server.intake.uploads import files_of, shown_state
from gramfuse_server.requests.progress import Progress, progress_of
from gramfuse_server.tables import AskedRow, PolicyRow, RequestRow, UploadRow
from gramfuse_shared.contract.http_api import AnswerInfo
from gramfuse_shared.contract.manifest import PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import (
    EVALUATION_KINDS,
    Answer,
    AnswerState,
    Asked,
    RequestCreate,
    RequestInfo,
)
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import NotFoundError


def find_request(session: Session, project: str, identifier: str) -> RequestRow:
    """Return a request of a project; raises NotFoundError."""
    row = session.get(RequestRow, (project, identifier))
    if row is None:
        msg = f"there is no request {identifier} in {project}"
        raise NotFoundError(msg)
    return row


def request_of(row: RequestRow) -> RequestCreate:
    """Return what is asked."""
    return RequestCreate.parse(row.document)


def progress(session: Session, row: RequestRow, now: datetime) -> Progress:
    """Return how far a request is."""
    places = _places(session, [row])[row.project, row.id]
    states = {place.organization: _state(upload, place, now) for place, upload in places}
    return _progress(row, _Rules(session).of(row), states, now)


def accepted_answers(session: Session, row: RequestRow) -> dict[str, Answer]:
    """Return the answers that count, by organization."""
    return {
        place.organization: Answer.parse(place.answer)
        for place, upload in _places(session, [row])[row.project, row.id]
        if place.answer and (upload is None or upload.state == "accepted")
    }


def request_documents(
    session: Session, rows: Sequence[RequestRow], viewer: str | None, now: datetime
) -> list[RequestInfo]:
    """Describe requests; why an answer was refused is its own organization's to know."""
    places, rules = _places(session, rows), _Rules(session)
    documents = []
    for row in rows:
        mine, rule = places[row.project, row.id], rules.of(row)
        states = {place.organization: _state(upload, place, now) for place, upload in mine}
        seen = _progress(row, rule, states, now)
        asked = request_of(row)
        answers = {place.organization: _shown(place, asked) for place, _ in mine}
        documents.append(
            RequestInfo(
                id=row.id,
                project=row.project,
                kind=asked.kind,
                models=asked.models,
                layers=asked.layers,
                block=asked.block,
                weighting=asked.weighting,
                after=asked.after,
                session=None if rule.summed is None else rule.summed.digest,
                state=seen.state,
                reason=seen.reason,
                policy=PolicyReference(version=row.policy_version, digest=rule.policy_digest),
                created_at=row.created_at,
                deadline=row.deadline,
                asked=tuple(
                    Asked(
                        organization=place.organization,
                        state=states[place.organization],
                        reason=upload.reason if upload is not None and place.organization == viewer else None,
                        scores=() if (shown := answers[place.organization]) is None else shown.scores,
                        withheld=() if shown is None else shown.withheld,
                    )
                    for place, upload in mine
                ),
            )
        )
    return documents


def answer_document(session: Session, place: AskedRow, now: datetime) -> AnswerInfo:
    """Describe an organization's own answer."""
    upload = None if place.upload is None else session.get_one(UploadRow, place.upload)
    files = {} if upload is None else files_of(session, [upload.id])
    return AnswerInfo(
        organization=place.organization,
        state=_state(upload, place, now),
        reason=None if upload is None else upload.reason,
        files=() if upload is None else files[upload.id],
        answer=Answer.parse(place.answer) if place.answer else None,
    )


def _shown(place: AskedRow, asked: RequestCreate) -> Answer | None:
    """Return an answer of which members see something; all else is between its organization and the server."""
    if place.answer is None:
        return None
    if asked.kind in EVALUATION_KINDS or '"withheld":' in place.answer:  # others can be large, and are not parsed
        return Answer.parse(place.answer)
    return None


def _places(
    session: Session, rows: Sequence[RequestRow]
) -> dict[tuple[str, str], list[tuple[AskedRow, UploadRow | None]]]:
    found: dict[tuple[str, str], list[tuple[AskedRow, UploadRow | None]]] = {(row.project, row.id): [] for row in rows}
    query = (
        select(AskedRow, UploadRow)
        .outerjoin(UploadRow, UploadRow.id == AskedRow.upload)
        .where(tuple_(AskedRow.project, AskedRow.request).in_(list(found)))
        .order_by(AskedRow.organization)
    )
    for place, upload in session.execute(query):
        found[place.project, place.request].append((place, upload))
    return found


def _state(upload: UploadRow | None, place: AskedRow, now: datetime) -> AnswerState:
    if place.answer is None:
        return "awaited"
    return "accepted" if upload is None else cast("AnswerState", shown_state(upload, now))


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a request follows: the policy that it was asked under, and the secure sum that it is a stage of."""

    policy: Policy
    policy_digest: str
    summed: SessionManifest | None


class _Rules:
    """The rules of requests; those that many share are read once, for manifests of secure sums are large."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._policies: dict[tuple[str, int], tuple[Policy, str]] = {}
        self._summed: dict[tuple[str, str], SessionManifest | None] = {}

    def of(self, row: RequestRow) -> _Rule:
        """Return a request's."""
        policy, digest = self._policy(row.project, row.policy_version)
        return _Rule(policy, digest, self._manifest(row.project, row.opened_by or row.id))

    def _policy(self, project: str, version: int) -> tuple[Policy, str]:
        key = project, version
        if key not in self._policies:
            found = self._session.get_one(PolicyRow, key)
            self._policies[key] = Policy.parse(found.document), found.digest
        return self._policies[key]

    def _manifest(self, project: str, opened_by: str) -> SessionManifest | None:
        key = project, opened_by
        if key not in self._summed:
            opened = self._session.get_one(RequestRow, key)
            self._summed[key] = None if opened.session is None else SessionManifest.parse(opened.session)
        return self._summed[key]


def _progress(row: RequestRow, rule: _Rule, states: dict[str, AnswerState], now: datetime) -> Progress:
    threshold = 0 if rule.summed is None else rule.summed.threshold
    return progress_of(
        states,
        deadline=row.deadline,
        cancelled=row.cancelled_at is not None,
        now=now,
        policy=rule.policy,
        fewest=max(rule.policy.minimum_cohort, threshold),
    )
