"""Requests and jobs under names that a loop derives, so that the same loop run again finds what there is."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import RequestCreate, RequestInfo
from gramfuse_shared.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from gramfuse.loops import Loops

LONGEST_RETRY: Final = "-retry-99"
_QUESTION: Final = RequestCreate.model_fields.keys() & RequestInfo.model_fields.keys()
_ENDED_BADLY: Final = frozenset({"failed", "cancelled"})


def request_names(first: str) -> Iterator[str]:
    """Name a request, and those that are asked in its place if it fails or is taken back."""
    yield first
    number = 1
    while True:
        number += 1
        yield f"{first}-retry-{number}"


def find_or_ask(
    client: "Loops",
    project: str,
    name: str,
    body: RequestCreate,
    *,
    is_usable: Callable[[RequestInfo], bool] = lambda _: True,
) -> RequestInfo:
    """Return the request of this name, or of the first retry of it that did not end badly; ask where there is none.

    Args:
        client: the coordinator's.
        project: the project.
        name: the first name.
        body: what is asked; the seconds of one that is there already may be others.
        is_usable: whether a complete request serves.

    Raises:
        ConflictError: a name stands for another question.
        GramfuseError: see `Client.ask`.
    """
    candidates = request_names(name)
    while True:
        candidate = next(candidates)
        try:
            found = client.request(project, candidate)
        except NotFoundError:
            return client.pose(project, body, request=candidate)
        if any(getattr(found, key) != getattr(body, key) for key in _QUESTION):
            msg = f"request {candidate} asks something else than this loop would; choose another id"
            raise ConflictError(msg)
        if found.state == "open" or (found.state == "complete" and is_usable(found)):
            return found


def wait_for_answers(
    client: "Loops",
    project: str,
    request: RequestInfo,
    *,
    on_request: Callable[[RequestInfo], None],
    on_progress: Callable[[RequestInfo], None],
) -> RequestInfo:
    """Return a request once it is complete; one that is open is told to `on_request` before it is waited for.

    Raises:
        GramfuseError: see `Client.wait_for_request`.
    """
    if request.state != "open":
        return request
    on_request(request)
    return client.wait_for_request(project, request.id, on_progress=on_progress)


def run_job(
    client: "Loops",
    project: str,
    job: str,
    recipe: Recipe,
    *,
    on_known: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[Job], None] = lambda _: None,
) -> Job:
    """Submit a job, or find it, or retry it where it ended badly; return it once it has succeeded.

    `on_known` is told the id of one that was there already.

    Raises:
        GramfuseError: see `Client.submit`, `Client.retry` and `Client.wait`.
    """
    start_job(client, project, job, recipe, on_known=on_known)
    return client.wait(project, job, on_progress=on_progress)


def start_job(
    client: "Loops", project: str, job: str, recipe: Recipe, *, on_known: Callable[[str], None] = lambda _: None
) -> None:
    """As `run_job`, without waiting."""
    submitted = client.submit(project, recipe, job=job)
    if not submitted.new:
        on_known(job)
    if submitted.state in _ENDED_BADLY:
        client.retry(project, job)
