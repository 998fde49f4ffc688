"""Answer a project's open requests one after the other: pull, compute, keep, show, send."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from gramfuse.answering.computing import Assignment, compute
from gramfuse.answering.configuration import Participation
from gramfuse.answering.kept import KeptAnswers
from gramfuse.answering.made_from import digest_of_sources
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.measuring.inference import Progress as Measured
from gramfuse.participation import Client
from gramfuse.progress import OnProgress
from gramfuse.securing.ended import forget_ended
from gramfuse.securing.stages import Stages, kept_sessions
from gramfuse.transfer.reusing import take_known_files
from gramfuse_shared.contract.requests import AnswerState, RequestInfo, stage_named
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    CancelledError,
    ContributionRejectedError,
    GramfuseError,
    PolicyViolationError,
    RequestMalformedError,
    StatisticsInvalidError,
    StatisticsMalformedError,
)

_UNANSWERED: frozenset[AnswerState] = frozenset({"awaited", "open", "rejected", "expired"})

_REFUSALS: Final = (
    PolicyViolationError,
    RequestMalformedError,
    ArchitectureMismatchError,
    StatisticsMalformedError,
    StatisticsInvalidError,
    ContributionRejectedError,
)
"""By which an answer itself is refused, here or by the server: sent again it would be again, so none is kept."""

Outcome = Literal["answered", "declined", "no local data", "failed"]

Measuring: TypeAlias = Callable[[RequestInfo], AbstractContextManager[Callable[[Measured], None]]]
Transferring: TypeAlias = Callable[[], AbstractContextManager[OnProgress]]
"""Show how far a computation, and a transfer, is while it lasts."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What became of a request; of one that failed, by which error."""

    request: RequestInfo
    outcome: Outcome
    error: GramfuseError | None = None


@contextmanager
def _quiet(*_: object) -> Iterator[Callable[[Any], None]]:
    yield lambda _: None


def participate(
    client: Client,
    participation: Participation,
    *,
    confirm: Callable[[PreparedAnswer], bool],
    on_allowed: Callable[[PreparedAnswer], None] = lambda _: None,
    on_failure: Callable[[RequestInfo, GramfuseError], None] | None = None,
    skip: Collection[str] = (),
    measuring: Measuring = _quiet,
    transferring: Transferring = _quiet,
    is_cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Handled]:
    """Answer all requests that wait for this organization; a rerun goes on where it stopped.

    One that cannot be answered keeps no other from it. An answer that was computed and not sent is kept, and is sent at
    a rerun if question, policy, texts, model and configuration are the same still; one that is refused is not kept.

    Args:
        client: the organization's connection.
        participation: local data, and what may be answered without asking.
        confirm: shown an answer of a kind that is not allowed beforehand; anything but True sends nothing.
        on_allowed: shown an answer that the configuration allows, before it is sent.
        on_failure: told what a request could not be answered for; None: the first error is raised, behind the last
            request. Errors that pass by themselves, and a cancellation, are raised at once in any case.
        skip: ids of requests that are left alone.
        measuring: shows a computation's progress.
        transferring: shows a transfer's progress.
        is_cancelled: asked after each batch of a computation.
        clock: tells whether a secure session was left for too long.

    Raises:
        GramfuseError: see `compute` and `Client.answer`; answers that were given stay given.
    """
    kept = KeptAnswers.of(participation)
    one_answer = _OneAnswer(client, participation, kept, confirm, on_allowed, measuring, transferring, is_cancelled)
    handled = []
    for request in waiting_requests(client, participation.project):
        if request.id in skip:
            continue
        try:
            handled.append(Handled(request, one_answer.give(request)))
        except GramfuseError as error:
            if error.retryable or isinstance(error, CancelledError):
                raise
            handled.append(Handled(request, "failed", error))
            if on_failure is not None:
                on_failure(request, error)
    forget_ended(client, participation.project, kept, now=clock())
    kept.forget_models({model for one in handled if one.outcome != "answered" for model in one.request.models})
    failed = [one.error for one in handled if one.error is not None]
    if failed and on_failure is None:
        raise failed[0]
    return handled


@dataclass(frozen=True, slots=True)
class _OneAnswer:
    """Computes, shows and sends the answer to one request; see `participate`."""

    client: Client
    participation: Participation
    kept: KeptAnswers
    confirm: Callable[[PreparedAnswer], bool]
    on_allowed: Callable[[PreparedAnswer], None]
    measuring: Measuring
    transferring: Transferring
    is_cancelled: Callable[[], bool]

    def give(self, request: RequestInfo) -> Outcome:
        if not self.participation.can_answer(request):
            return "no local data"
        if stage_named(request.kind) is not None:
            with self.measuring(request):
                spoken = Stages(self.client, self.participation).answer(request)
            return self._send(request, spoken)
        prepared = replace(self._kept_answer(request) or self._computed(request), asked=request)
        try:
            return self._send(request, prepared)
        except _REFUSALS:
            self.kept.forget(request.id)
            raise

    def _kept_answer(self, request: RequestInfo) -> PreparedAnswer | None:
        """Return the answer that was kept, if it may still be sent.

        It was made under the present policy, was not refused before, and is made from what lies here now; one that
        the server has in part is sent to its end as it is, since an answer is given once.
        """
        prepared, state = self.kept.find(request.id), _state(self.client, request)
        if prepared is None or state == "rejected":
            return None
        if prepared.answer.policy != self.client.project(request.project).policy:
            return None
        is_current = state == "open" or self.kept.is_made_from(
            request.id, digest_of_sources(request, self.participation)
        )
        return prepared if is_current else None

    def _computed(self, request: RequestInfo) -> PreparedAnswer:
        made_from = digest_of_sources(request, self.participation)  # before they are read: a change meanwhile is seen
        assignment = _assign(self.client, request, self.kept, self.transferring)
        with self.measuring(request) as on_progress:
            prepared = compute(assignment, self.participation, on_progress=on_progress, is_cancelled=self.is_cancelled)
        self.kept.keep(prepared, made_from)
        return prepared

    def _send(self, request: RequestInfo, prepared: PreparedAnswer) -> Outcome:
        if self.participation.allows(request):
            self.on_allowed(prepared)
        elif self.confirm(prepared) is not True:
            return "declined"
        with self.transferring() as on_transfer:
            self.client.answer(prepared, confirm=lambda _: True, on_progress=on_transfer)
        if not prepared.answer.announced:
            self.kept.forget(request.id)
        if prepared.session is not None and request.kind == "unmask":
            kept_sessions(self.client, request.project).session(prepared.session.digest).forget_secrets()
            if prepared.session.recipe.request is not None:
                self.kept.forget(prepared.session.recipe.request)
        return "answered"


def waiting_requests(client: Client, project: str) -> list[RequestInfo]:
    """List the requests that wait for this organization's answer, the oldest first."""
    return [
        request
        for request in reversed(client.requests(project))
        if request.state == "open" and _state(client, request) in _UNANSWERED
    ]


def _state(client: Client, request: RequestInfo) -> AnswerState | None:
    return next((place.state for place in request.asked if place.organization == client.organization), None)


def _assign(client: Client, request: RequestInfo, kept: KeptAnswers, transferring: Transferring) -> Assignment:
    kept.forget(request.id)
    models = {}
    for model in request.models:
        folder = kept.model(model)
        take_known_files(folder, client.model(request.project, model).receipt.receipt.outputs, kept.models())
        with transferring() as on_transfer:
            models[model] = client.pull(request.project, model, folder, to_answer=True, on_progress=on_transfer)
    policy = client.policy(request.project)
    project = client.project(request.project)
    return Assignment(
        request=request,
        organization=client.organization,
        policy=policy.policy,
        policy_version=policy.version,
        base=client.base_manifest(request.project),
        models=models,
        folder=kept.place(request.id),
        base_folder=client.home.base_folder(project.base),
    )
