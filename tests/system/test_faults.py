"""Workers that stand still, are cut off, lose their database: others take over, and who comes back spoils nothing."""

import contextlib
import functools
import http.client
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

import gramfuse
from gramfuse_server.departure import EXIT_ABANDONED
from support import tiny
from support.cable import cable_to, to_unix_socket
from support.collaboration import Collaboration, begin, contribute, tune
from support.deployment import HOST, Deployment, kill, wait_until
from support.soundness import (
    is_locked,
    open_database_of,
    require_sound,
    tasks_of,
    workers_of,
)

RECIPE = gramfuse.Recipe(merge_method="regmean")
# three megabytes a layer, so that a merge is many tasks and an upload many parts
WIDE = functools.partial(tiny.write_base, hidden=256, layers=6)
on_postgresql = pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)


@pytest.fixture(scope="module")
def ready_on() -> dict[Path, Collaboration]:
    return {}


@pytest.fixture
def ready(deployment: Deployment, ready_on: dict[Path, Collaboration]) -> Collaboration:
    """A project whose contributions are accepted, one on each database for all tests of this module."""
    if deployment.folder not in ready_on:
        collaboration = begin(deployment, ["fault-a", "fault-b", "fault-c"], WIDE)
        contribute(collaboration)
        ready_on[deployment.folder] = collaboration
    return ready_on[deployment.folder]


class Scene:
    """A running merge, seen through the database."""

    def __init__(self, deployment: Deployment, collaboration: Collaboration, job: str) -> None:
        self.deployment, self.job = deployment, job
        self.collaboration = collaboration
        self.database = open_database_of(deployment)

    def submit(self) -> None:
        with self.collaboration.coordinator.client() as client:
            client.submit(self.collaboration.project, RECIPE, job=self.job)

    def wait(self) -> None:
        with self.collaboration.coordinator.client() as client:
            assert client.wait(self.collaboration.project, self.job, timeout=120).state == "succeeded"

    def started(self, **settings: str) -> tuple[subprocess.Popen[bytes], str]:
        """Start a worker; return its process and its name."""
        before = set(workers_of(self.database))
        process = self.deployment.start_worker(**settings)
        (name,) = wait_until(
            lambda: set(workers_of(self.database)) - before, seconds=60, what="the worker's start", pause=0.1
        )
        return process, name

    def computes(self, worker: str) -> bool:
        """Whether a worker is in the middle of a task, and has finished another."""
        tasks = tasks_of(self.database, self.job).values()
        states = {task.state for task in tasks if task.worker == worker}
        return states == {"running", "succeeded"}

    def begun_again(self) -> list[int]:
        return [number for number, task in tasks_of(self.database, self.job).items() if task.executions > 1]

    def beats(self, worker: str) -> object:
        return workers_of(self.database)[worker].heartbeat_at


@contextlib.contextmanager
def scene(deployment: Deployment, collaboration: Collaboration, job: str) -> Iterator[Scene]:
    made = Scene(deployment, collaboration, job)
    try:
        yield made
    finally:
        made.database.close()


def alone(deployment: Deployment) -> None:
    """End every worker of the time before."""
    for worker in deployment.workers:
        kill(worker)


def suspend(deployment: Deployment, worker: subprocess.Popen[bytes]) -> None:
    """SIGSTOP, but never in a write to SQLite, which would stop everybody: there only one writes at a time."""
    path = deployment.folder / "server" / "gramfuse.sqlite"
    while True:
        worker.send_signal(signal.SIGSTOP)
        if deployment.database_url is not None or not is_locked(path):
            return
        worker.send_signal(signal.SIGCONT)


def test_a_worker_that_stood_still_past_its_lease_changes_nothing_when_it_goes_on(deployment, ready):
    alone(deployment)
    with scene(deployment, ready, "suspended") as merge:
        first, name = merge.started()
        merge.submit()
        wait_until(lambda: merge.computes(name), seconds=60, what="a task under way", pause=0.005)
        suspend(deployment, first)
        finished = {n: t.sha256 for n, t in tasks_of(merge.database, "suspended").items() if t.state == "succeeded"}
        second, other = merge.started()
        wait_until(merge.begun_again, seconds=60, what="the take-over")
        first.send_signal(signal.SIGCONT)
        merge.wait()
        tasks = tasks_of(merge.database, "suspended")
        assert {number: tasks[number].sha256 for number in finished} == finished
        assert all(tasks[number].executions == 1 for number in finished)
        assert other in {task.worker for task in tasks.values()}  # whoever ends a task first, of two, counts

        # it is a worker like any other again
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 0
        assert first.poll() is None
    with scene(deployment, ready, "suspended-then") as merge:
        merge.submit()
        merge.wait()
        assert {task.worker for task in tasks_of(merge.database, "suspended-then").values()} == {name}
    require_sound(deployment)


@on_postgresql
def test_a_worker_that_was_cut_off_from_the_database_lets_go_of_what_others_took_over(
    deployment, ready, postgres_server
):
    alone(deployment)
    url = sqlalchemy.make_url(deployment.database_url or "")
    with cable_to(to_unix_socket(postgres_server.socket)) as cable, scene(deployment, ready, "cut-off") as merge:
        through = url.difference_update_query(["host"]).set(host=HOST, port=cable.port)
        first, name = merge.started(database_url=through.render_as_string(hide_password=False))
        merge.submit()
        wait_until(lambda: merge.computes(name), seconds=60, what="a task under way", pause=0.005)
        cable.cut()
        second, other = merge.started()
        merge.wait()
        assert other in {task.worker for task in tasks_of(merge.database, "cut-off").values()}
        beat = merge.beats(name)
        cable.mend()
        wait_until(lambda: merge.beats(name) != beat, seconds=30, what="the first worker's return")
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 0
        assert first.poll() is None
        with scene(deployment, ready, "cut-off-then") as then:
            then.submit()
            then.wait()
        require_sound(deployment)
        kill(first)


@on_postgresql
def test_when_the_database_restarts_the_api_says_so_uploads_wait_and_the_merge_goes_on(
    deployment, ready, postgres_server
):
    alone(deployment)
    pusher = ready.desks[1]
    tune(pusher, seed=77)
    with scene(deployment, ready, "restarted-below") as merge:
        worker, name = merge.started()
        merge.submit()
        wait_until(lambda: merge.computes(name), seconds=60, what="a task under way", pause=0.005)
        finished = {n for n, task in tasks_of(merge.database, "restarted-below").items() if task.state == "succeeded"}
        before = len(deployment.log_text("worker"))
        postgres_server.stop()
        status, headers, problem = ask(deployment, ready.path(), pusher.token)
        assert (status, problem["code"], problem["retryable"]) == (503, "unavailable", True)
        assert headers["Retry-After"].isdecimal()
        pushing = pusher.start("contribution", "push", ready.project, "--model", "tuned", "--yes")
        wait_until(
            lambda: "trying again" in deployment.log_text("worker")[before:], seconds=30, what="the worker's notice"
        )
        postgres_server.start()
        merge.wait()
        _, errors = pushing.communicate(timeout=120)
        assert pushing.returncode == 0, errors
        assert worker.poll() is None
        assert deployment.api is not None
        assert deployment.api.poll() is None
        assert "took over" not in deployment.log_text("worker")[before:]
        # what was computed stayed; a begin whose commit was not answered any more is repeated
        begun_again = merge.begun_again()
        assert len(begun_again) <= 1
        assert finished.isdisjoint(begun_again)
    require_sound(deployment)


@on_postgresql
def test_a_worker_that_is_told_to_stop_ends_without_its_database_and_others_go_on(deployment, ready, postgres_server):
    """Who stops both, and starts the database behind the workers, would wait for as long as a worker may drain."""
    alone(deployment)
    with scene(deployment, ready, "left-alone") as merge:
        worker, name = merge.started()
        merge.submit()
        wait_until(lambda: merge.computes(name), seconds=60, what="a task under way", pause=0.005)
        postgres_server.stop()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == EXIT_ABANDONED
        postgres_server.start()
        merge.started()
        merge.wait()
    require_sound(deployment)


def ask(deployment: Deployment, path: str, token: str) -> tuple[int, http.client.HTTPMessage, dict[str, object]]:
    with contextlib.closing(http.client.HTTPConnection(HOST, deployment.port, timeout=60)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())
