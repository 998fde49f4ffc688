"""Requests in the SDK: the coordinator asks and waits, every organization answers."""

import secrets
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.connection import Connection, named
from gramfuse.progress import OnProgress
from gramfuse.transfer import answering, pushing
from gramfuse.transfer.watching import Deadline, poll
from gramfuse_shared.contract.answer_rules import require_answer_allowed
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.http_api import AnswerInfo, Page, PolicyVersion, StageMessages
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.contract.policy import RequestKind
from gramfuse_shared.contract.requests import (
    DEFAULT_SECONDS,
    MeasuredBlock,
    RequestCreate,
    RequestInfo,
)
from gramfuse_shared.contract.secure import SignedMessage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import CancelledError, NotConfirmedError, RequestFailedError, RequestMalformedError
from gramfuse_shared.identifiers import JOB_PATTERN


class Rounds(Connection):
    """What a connection can do with requests."""

    def ask(
        self,
        project: str,
        kind: RequestKind,
        models: str | Sequence[str],
        *,
        layers: Sequence[str] = (),
        block: MeasuredBlock = "merged",
        weighting: Weighting = "none",
        seconds: int = DEFAULT_SECONDS,
        request: str | None = None,
    ) -> RequestInfo:
        """Ask every organization of the models' cohorts; the coordinator's right.

        The same id with the same question is the same request; without an id one is made up.

        Args:
            project: the project.
            kind: what is asked for: `evaluate`, `gram`, `head`, `refit` or `calibration`.
            models: merged models, one except for `evaluate`.
            layers: of `gram`, the linear weights whose inputs are measured, of `refit` those that are refit; none: all.
            block: of `gram`, whose weights the blocks have that hold these layers while they are measured.
            weighting: of `gram`, what a row of the matrices counts by.
            seconds: until the deadline.
            request: the request's id.

        Raises:
            PolicyViolationError: the policy does not let participants be asked this.
            ConflictError: the id stands for another question.
            NotFoundError: there is no such model.
            RequestMalformedError: what is asked does not fit the kind.
        """
        chosen = (models,) if isinstance(models, str) else tuple(models)
        try:
            body = RequestCreate(
                kind=kind, models=chosen, layers=tuple(layers), block=block, weighting=weighting, seconds=seconds
            )
        except ValidationError as error:
            raise RequestMalformedError(describe_validation("request", error.errors())) from error
        return self.pose(project, body, request=request or f"{kind}-{secrets.token_hex(3)}")

    def pose(self, project: str, body: RequestCreate, *, request: str) -> RequestInfo:
        """Make a request that is written out, or find it; raises as `ask` and, of a secure sum, as `sum`."""
        path = self._request_path(project, request)
        return RequestInfo.parse(self._transport.call("PUT", path, json=body.model_dump(mode="json")))

    def session(self, project: str, request: str) -> SessionManifest:
        """Return the manifest of the secure sum that a request is a stage of."""
        return SessionManifest.parse(self._transport.call("GET", f"{self._request_path(project, request)}/session"))

    def stage_messages(self, project: str, request: str) -> tuple[SignedMessage, ...]:
        """Return the signed messages that a stage of a secure sum shows."""
        path = f"{self._request_path(project, request)}/messages"
        return StageMessages.parse(self._transport.call("GET", path)).messages

    def requests(self, project: str) -> list[RequestInfo]:
        """List a project's requests, the newest first."""
        return list(self._pages(f"{self._path(project)}/requests", Page[RequestInfo]))

    def request(self, project: str, request: str) -> RequestInfo:
        """Return a request: who has answered, and of an evaluation everybody's metrics."""
        return RequestInfo.parse(self._transport.call("GET", self._request_path(project, request)))

    def cancel_request(self, project: str, request: str) -> RequestInfo:
        """Take a request back; the coordinator's right."""
        path = f"{self._request_path(project, request)}/cancel"
        return RequestInfo.parse(self._transport.call("POST", path))

    def wait_for_request(
        self,
        project: str,
        request: str,
        *,
        on_progress: Callable[[RequestInfo], None] | None = None,
        timeout: float | None = None,
    ) -> RequestInfo:
        """Wait until a request is complete and return it.

        Raises:
            RequestFailedError: somebody missed the deadline.
            CancelledError: it was taken back.
            UnavailableError: `timeout` seconds are over; the request stays open.
        """

        def look() -> RequestInfo:
            seen = self.request(project, request)
            if on_progress is not None:
                on_progress(seen)
            return seen

        seen = poll(
            look,
            lambda seen: seen.state != "open",
            what=f"the request {request}",
            deadline=Deadline(timeout),
            sleep=self._sleep,
        )
        if seen.state == "failed":
            msg = f"request {request} failed: {seen.reason or 'no reason given'}"
            raise RequestFailedError(msg, request=request)
        if seen.state == "cancelled":
            msg = f"request {request} was taken back"
            raise CancelledError(msg)
        return seen

    def answer(
        self,
        prepared: PreparedAnswer,
        *,
        confirm: Callable[[PreparedAnswer], bool],
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> AnswerInfo:
        """Send an answer and return it once the server accepted it. A rerun sends only what is missing.

        Whether the answer is one to the request, and whether the policy lets it leave, is checked here first.

        Args:
            prepared: the answer, as `gramfuse participate` computes it.
            confirm: shown what leaves and what stays; anything but True sends nothing.
            on_progress: told the bytes that were sent.
            timeout: seconds to wait for the server's checks; None: as long as they take.

        Raises:
            NotConfirmedError: `confirm` did not return True.
            PolicyNotAcceptedError, PolicyViolationError: the policy.
            ContributionRejectedError: the server's checks refused it.
            StateError: the request is over.
        """
        answer = prepared.answer
        project = self._project(answer.project)
        pushing.require_accepted(project, self.organization)
        self._trust(project).require_accepted(project, self.organization)
        asked = self.request(project.id, answer.request)
        path = f"v1/projects/{project.id}/policies/{project.policy.version}"
        policy = PolicyVersion.parse(self._transport.call("GET", path)).policy
        pushing.require_announced_policy(project, policy)
        require_answer_allowed(answer, asked, policy, self.base_manifest(project.id))
        if confirm(prepared) is not True:
            msg = "nothing was sent: the answer was not confirmed"
            raise NotConfirmedError(msg)
        given = answering.send_answer(self._transport, prepared, parallel=self._parallel, on_progress=on_progress)
        if given.state == "sealed":
            given = poll(
                lambda: AnswerInfo.parse(self._transport.call("GET", answering.answer_path(prepared))),
                lambda seen: seen.state not in {"open", "sealed"},
                what="the server's check of the answer",
                deadline=Deadline(timeout),
                sleep=self._sleep,
                workers=self._workers(),
            )
        return answering.require_accepted_answer(given)

    def _request_path(self, project: str, request: str) -> str:
        return f"{self._path(project)}/requests/{named('request', request, JOB_PATTERN)}"
