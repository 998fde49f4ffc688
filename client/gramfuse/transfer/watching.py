"""Wait for what the server does: a job by its events, a contribution or a base model by asking."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from gramfuse.transfer.events import COMMENT
from gramfuse.transfer.retrying import is_retryable
from gramfuse.transfer.transport import Transport
from gramfuse_shared.contract.http_api import Job, Workers
from gramfuse_shared.errors import CancelledError, GramfuseError, JobFailedError, UnavailableError

Seen = TypeVar("Seen")

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
_STILL_SECONDS: Final = 10.0
"""After so long without news it is time to ask whether anybody works."""


class Deadline:
    """A bound on waiting, in seconds from now; None waits for ever."""

    def __init__(self, timeout: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout

    def require_time_left(self, what: str) -> None:
        """Require that the deadline is not over.

        Raises:
            UnavailableError: it is.
        """
        if self._end is not None and self._clock() >= self._end:
            msg = f"{what} takes longer than the time allowed; the server goes on with it, wait again"
            raise UnavailableError(msg)


class WorkerWatch:
    """Asks, where something has stood still for a while, whether a worker of the server is alive, and tells if none is.

    Args:
        transport: the way to the server.
        on_none: told once.
        clock: seconds that pass.
    """

    def __init__(
        self, transport: Transport, on_none: Callable[[], None] | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._on_none = on_none
        self._clock = clock
        self._since = clock()

    def stand_still(self) -> None:
        """Note that there is no news."""
        if self._on_none is None or self._clock() - self._since < _STILL_SECONDS:
            return
        self._since = self._clock()
        try:
            alive = Workers.parse(self._transport.call("GET", "v1/workers")).alive
        except GramfuseError:
            return  # an older server, or one that is away: whoever waits finds that out
        if not alive:
            on_none, self._on_none = self._on_none, None
            on_none()

    def see_news(self) -> None:
        """Note that something went on."""
        self._since = self._clock()


def poll(
    look: Callable[[], Seen],
    is_over: Callable[[Seen], bool],
    *,
    what: str,
    deadline: Deadline,
    sleep: Callable[[float], None] = time.sleep,
    workers: WorkerWatch | None = None,
) -> Seen:
    """Ask until it is over, ever more patiently, and return what was seen last; `workers`: it is they who do it.

    Raises:
        UnavailableError: the deadline is over.
    """
    pause = _FIRST_PAUSE_SECONDS
    while not is_over(seen := look()):
        deadline.require_time_left(what)
        if workers is not None:
            workers.stand_still()
        sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
    return seen


def watch_job(
    transport: Transport,
    path: str,
    *,
    deadline: Deadline,
    on_progress: Callable[[Job], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    workers: WorkerWatch | None = None,
) -> Job:
    """Follow a job's events to its end; a stream that breaks is opened anew, and the job asked for in between.

    Raises:
        JobFailedError: the job failed; `facts` hold the server's code and message.
        CancelledError: the job was cancelled.
        UnavailableError: the deadline is over; the job goes on.
        GramfuseError: what the server answers.
    """
    while True:
        job = Job.parse(transport.call("GET", path))
        _tell(job, on_progress)
        if job.state not in ENDED:
            job = _follow(transport, path, job, deadline, on_progress, workers)
        if job.state in ENDED:
            return _require_succeeded(job)
        deadline.require_time_left(f"job {job.id}")
        sleep(_FIRST_PAUSE_SECONDS)


def _follow(
    transport: Transport,
    path: str,
    job: Job,
    deadline: Deadline,
    on_progress: Callable[[Job], None] | None,
    workers: WorkerWatch | None,
) -> Job:
    """Read events until the job ends, the stream ends or breaks; return the job as last seen."""
    try:
        for event in transport.events(f"{path}/events"):
            if event.kind == "job":
                job = Job.parse(event.text)
                _tell(job, on_progress)
            if workers is not None and event.kind == COMMENT:
                workers.stand_still()
            elif workers is not None:
                workers.see_news()
            if job.state in ENDED:
                return job
            deadline.require_time_left(f"job {job.id}")
    except GramfuseError as error:
        if isinstance(error, UnavailableError) or not is_retryable(error):
            raise
    return job


def _tell(job: Job, on_progress: Callable[[Job], None] | None) -> None:
    if on_progress is not None:
        on_progress(job)


def _require_succeeded(job: Job) -> Job:
    if job.state == "cancelled":
        msg = f"job {job.id} was cancelled in attempt {job.attempt}"
        raise CancelledError(msg, job=job.id)
    if job.state == "failed":
        cause = f": {job.error.message} [{job.error.code}]" if job.error is not None else ""
        msg = f"job {job.id} failed in attempt {job.attempt}{cause}; see `gramfuse job logs {job.project} {job.id}`"
        raise JobFailedError(msg, job=job.id, error=job.error.model_dump() if job.error else None)
    return job
