"""Answer a project's open requests one after the other: pull, compute, keep, show, send."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gramfuse.answering.computing import Assignment, compute
from gramfuse.answering.configuration import Participation
from gramfuse.answering.kept import KeptAnswers
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.measuring.inference import Progress as Measured
from gramfuse.participation import Client
from gramfuse.progress import OnProgress
from gramfuse_shared.contract.requests import AnswerState, RequestInfo

_UNANSWERED: frozenset[AnswerState] = frozenset({"awaited", "open", "rejected", "expired"})

Outcome = Literal["answered", "declined", "no local data"]

Measuring: TypeAlias = Callable[[RequestInfo], AbstractContextManager[Callable[[Measured], None]]]
Transferring: TypeAlias = Callable[[], AbstractContextManager[OnProgress]]
"""Show how far a computation, and a transfer, is while it lasts."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What became of a request."""

    request: RequestInfo
    outcome: Outcome


@contextmanager
def _quiet(*_: object) -> Iterator[Callable[[Any], None]]:
    yield lambda _: None


def participate(
    client: Client,
    participation: Participation,
    *,
    confirm: Callable[[PreparedAnswer], bool],
    on_allowed: Callable[[PreparedAnswer], None] = lambda _: None,
    measuring: Measuring = _quiet,
    transferring: Transferring = _quiet,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[Handled]:
    """Answer all requests that wait for this organization; a rerun goes on where it stopped.

    Args:
        client: the organization's connection.
        participation: local data, and what may be answered without asking.
        confirm: shown an answer of a kind that is not allowed beforehand; anything but True sends nothing.
        on_allowed: shown an answer that the configuration allows, before it is sent.
        measuring: shows a computation's progress.
        transferring: shows a transfer's progress.
        is_cancelled: asked after each batch of a computation.

    Raises:
        GramfuseError: see `compute` and `Client.answer`; answers that were given stay given.
    """
    kept = KeptAnswers(participation.folder)
    handled = []
    for request in waiting_requests(client, participation.project):
        if not participation.can_answer(request):
            handled.append(Handled(request, "no local data"))
            continue
        prepared = kept.find(request.id)
        if prepared is None or not _is_current(client, request, prepared):
            assignment = _assign(client, request, kept, transferring)
            with measuring(request) as on_progress:
                prepared = compute(assignment, participation, on_progress=on_progress, is_cancelled=is_cancelled)
            kept.keep(prepared)
        if request.kind in participation.allow:
            on_allowed(prepared)
        elif confirm(prepared) is not True:
            handled.append(Handled(request, "declined"))
            continue
        with transferring() as on_transfer:
            client.answer(prepared, confirm=lambda _: True, on_progress=on_transfer)
        kept.forget(request.id)
        handled.append(Handled(request, "answered"))
    kept.forget_models({model for one in handled if one.outcome != "answered" for model in one.request.models})
    return handled


def waiting_requests(client: Client, project: str) -> list[RequestInfo]:
    """List the requests that wait for this organization's answer, the oldest first."""
    return [
        request
        for request in reversed(client.requests(project))
        if request.state == "open" and _state(client, request) in _UNANSWERED
    ]


def _state(client: Client, request: RequestInfo) -> AnswerState | None:
    return next((place.state for place in request.asked if place.organization == client.organization), None)


def _is_current(client: Client, request: RequestInfo, prepared: PreparedAnswer) -> bool:
    """Tell whether a kept answer may still be sent: made under the present policy, and not refused before."""
    present = client.project(request.project).policy
    return prepared.answer.policy == present and _state(client, request) != "rejected"


def _assign(client: Client, request: RequestInfo, kept: KeptAnswers, transferring: Transferring) -> Assignment:
    kept.forget(request.id)
    models = {}
    for model in request.models:
        with transferring() as on_transfer:
            models[model] = client.pull(request.project, model, kept.model(model), on_progress=on_transfer)
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
