"""Waiting for a job: by events, across broken streams, to each of its ends, and no longer than allowed."""

import json

import httpx
import pytest

from gramfuse.config import Endpoint, Token
from gramfuse.transfer.retrying import RetryRule
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.watching import Deadline, WorkerWatch, poll, watch_job
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.errors import CancelledError, JobFailedError, NotFoundError, UnavailableError

PATH = "v1/projects/acme.tweets/jobs/j"


def job(state: str = "running", progress: float = 0.0, **changes) -> dict:
    document = {
        "id": "j",
        "project": "acme.tweets",
        "state": state,
        "stage": "merging",
        "attempt": 1,
        "progress": progress,
        "done_tasks": 0,
        "total_tasks": 4,
        "recipe": {"merge_method": "regmean"},
        "cohort": [],
        "created_at": "2026-01-02T03:04:05Z",
    }
    return Job.model_validate(document | changes).model_dump(mode="json")


def event(document: dict) -> str:
    return f"event: job\ndata: {json.dumps(document)}\n\n"


class JobServer:
    """Answers looks at a job one after the other, and event streams one after the other."""

    def __init__(self, looks: list[dict], streams: list[str | Exception]) -> None:
        self.looks, self.streams, self.calls = looks, streams, list[str]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            self.calls.append("events")
            stream = self.streams.pop(0)
            if isinstance(stream, Exception):
                raise stream
            return httpx.Response(200, stream=httpx.ByteStream(stream.encode()))
        self.calls.append("look")
        return httpx.Response(200, json=self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])

    def transport(self) -> Transport:
        return Transport(
            Endpoint("http://127.0.0.1:1", Token("gf_a_b"), allow_http=False),
            connection=httpx.MockTransport(self),
            retry=RetryRule(attempts=1),
            sleep=lambda _: None,
        )

    def watch(self, on_progress=None, deadline: Deadline | None = None) -> Job:
        return watch_job(
            self.transport(), PATH, deadline=deadline or Deadline(None), on_progress=on_progress, sleep=lambda _: None
        )


def test_every_event_is_told_up_to_the_last_one():
    server = JobServer(
        [job(progress=0.1)], [event(job(progress=0.5)) + ": ping\n\n" + event(job("succeeded", progress=1.0))]
    )
    seen: list[Job] = []
    assert server.watch(seen.append).state == "succeeded"
    assert [found.progress for found in seen] == [0.1, 0.5, 1.0]
    assert server.calls == ["look", "events"]


def test_a_job_that_ended_before_is_not_watched():
    server = JobServer([job("succeeded", 1.0)], [])
    assert server.watch().state == "succeeded"
    assert server.calls == ["look"]


@pytest.mark.parametrize("broken", [httpx.ReadError("reset"), event(job(progress=0.4)), ""])
def test_a_stream_that_breaks_or_ends_early_is_opened_anew_after_a_look(broken):
    server = JobServer([job(), job(progress=0.6)], [broken, event(job("succeeded", progress=1.0))])
    assert server.watch().state == "succeeded"
    assert server.calls == ["look", "events", "look", "events"]


def test_an_end_that_came_between_two_streams_is_seen():
    server = JobServer([job(), job("succeeded", 1.0)], [httpx.ReadError("reset")])
    assert server.watch().state == "succeeded"


@pytest.mark.parametrize(("state", "kind"), [("failed", JobFailedError), ("cancelled", CancelledError)])
def test_each_other_end_is_an_error_of_its_own(state, kind):
    error = {"code": "weights-invalid", "message": "NaN in a.weight"} if state == "failed" else None
    with pytest.raises(kind) as caught:
        JobServer([job()], [event(job(state, error=error))]).watch()
    assert ("NaN in a.weight" in caught.value.message) is (state == "failed")


def test_waiting_ends_at_the_deadline_and_says_that_the_job_goes_on():
    times = iter([0.0, 1.0, 99.0])
    deadline = Deadline(10.0, clock=lambda: next(times))
    with pytest.raises(UnavailableError, match="goes on"):
        JobServer([job()], [event(job(progress=0.1)) + event(job(progress=0.2))]).watch(deadline=deadline)


def test_a_job_that_is_not_there_is_not_waited_for():
    body = {"type": "x", "title": "x", "status": 404, "detail": "no job j", "code": "not-found"}
    transport = Transport(
        Endpoint("http://127.0.0.1:1", Token("gf_a_b"), allow_http=False),
        connection=httpx.MockTransport(lambda _: httpx.Response(404, json=body)),
    )
    with pytest.raises(NotFoundError, match="no job j"):
        watch_job(transport, PATH, deadline=Deadline(None))


def test_polling_grows_more_patient_up_to_a_bound():
    pauses: list[float] = []
    looks = iter(range(20))
    assert poll(lambda: next(looks), lambda n: n == 15, what="x", deadline=Deadline(None), sleep=pauses.append) == 15
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.5
    assert max(pauses) == pauses[-1] == 2.0


# --- nobody works -----------------------------------------------------------------------------------------------------


class Workplace:
    """A server that is asked whether a worker is alive, and a clock that each look moves by some seconds."""

    def __init__(self, answers: list[httpx.Response], *, seconds_a_look: float = 2.0) -> None:
        self.answers, self.asked, self.told, self.now = answers, 0, 0, 0.0
        self.seconds_a_look = seconds_a_look

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/workers"
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]

    def tell(self) -> None:
        self.told += 1

    def clock(self) -> float:
        return self.now

    def sleep(self, _: float) -> None:
        self.now += self.seconds_a_look

    def watch(self) -> WorkerWatch:
        transport = Transport(
            Endpoint("http://127.0.0.1:1", Token("gf_a_b"), allow_http=False),
            connection=httpx.MockTransport(self),
            retry=RetryRule(attempts=1),
        )
        return WorkerWatch(transport, self.tell, clock=self.clock)

    def poll(self, looks: int) -> None:
        numbers = iter(range(looks + 1))
        poll(
            lambda: next(numbers),
            lambda n: n == looks,
            what="x",
            deadline=Deadline(None),
            sleep=self.sleep,
            workers=self.watch(),
        )


def test_after_ten_seconds_of_waiting_it_is_told_once_that_no_worker_is_alive():
    place = Workplace([httpx.Response(200, json={"alive": False})])
    place.poll(5)
    assert (place.asked, place.told) == (0, 0)
    place.poll(60)
    assert (place.asked, place.told) == (1, 1)


def test_whoever_waits_for_a_worker_that_lives_is_told_nothing_until_it_dies():
    place = Workplace([httpx.Response(200, json={"alive": True})] * 2 + [httpx.Response(200, json={"alive": False})])
    place.poll(12)
    assert (place.asked, place.told) == (2, 0)
    place.watch()
    place.poll(12)
    assert place.told == 1


def test_a_server_that_does_not_know_the_question_changes_nothing():
    place = Workplace([httpx.Response(404)])
    place.poll(30)
    assert place.told == 0


def test_a_queued_job_asks_at_signs_of_life_of_the_stream_and_not_after_news():
    place = Workplace([httpx.Response(200, json={"alive": False})])
    workers = place.watch()
    still = JobServer([job("queued")], [": still here\n\n" + event(job("succeeded", progress=1.0))])
    place.now = 9.0
    watch_job(still.transport(), PATH, deadline=Deadline(None), workers=workers)
    assert (place.asked, place.told) == (0, 0)
    place.now = 18.0  # nine seconds behind the news
    still = JobServer([job("queued")], [": still here\n\n: still here\n\n" + event(job("succeeded", progress=1.0))])
    watch_job(still.transport(), PATH, deadline=Deadline(None), workers=workers)
    assert (place.asked, place.told) == (0, 0)
    place.now = 30.0
    still = JobServer([job("queued")], [": still here\n\n: still here\n\n" + event(job("succeeded", progress=1.0))])
    watch_job(still.transport(), PATH, deadline=Deadline(None), workers=workers)
    assert (place.asked, place.told) == (1, 1)


def test_a_deadline_is_kept_while_a_job_only_waits_in_the_queue():
    times = iter([0.0, 99.0])
    deadline = Deadline(10.0, clock=lambda: next(times))
    with pytest.raises(UnavailableError, match="goes on"):
        JobServer([job("queued")], [": still here\n\n"]).watch(deadline=deadline)
