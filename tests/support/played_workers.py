"""Workers that are called by hand and end anywhere, and a queue that hands their work out as the job engine does.

What waits is read from the engine's own table, into which the API enqueues. Who has claimed what, and which steps are
journaled, is kept here: the engine runs one worker a process, and here several take turns within one.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import sqlalchemy

from gramfuse_server import heartbeats, supervision
from gramfuse_server.database import reading, transaction
from gramfuse_server.jobs import INSPECT, MAX_RECOVERY_ATTEMPTS, MERGE, MERGE_SHARD
from gramfuse_server.merging import workflows
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.settings import Settings
from gramfuse_server.supervision import Supervisor
from gramfuse_server.worker import INSPECTION_TRIES
from support.borders import Course
from support.server_world import World
from support.worker_world import InProcessWorker

LEASE = timedelta(seconds=5)
HOST = heartbeats.Host(name="here", device="cpu", memory_bytes=1, version="0")


@dataclass
class Workflow:
    """A piece of work: by whom it is claimed, how often it was, or, of a merge, how often the step that it is at was
    begun, and how many shards were planned.
    """

    id: str
    claimed_by: str | None = None
    begun: int = 0
    plan: int | None = None
    ended: bool = False

    @property
    def kind(self) -> str:
        return self.id.partition(":")[0]

    @property
    def subject(self) -> tuple[str, ...]:
        return tuple(self.id.split(":")[1:])

    @property
    def attempt(self) -> Attempt:
        project, job, number, *_ = self.subject
        return Attempt(project, job, int(number))


@dataclass
class PlayedWorker:
    """A worker, and the step that it stands in the middle of, if it does."""

    name: str
    parts: InProcessWorker
    supervisor: Supervisor
    course: Course | None = None
    note: Callable[[], None] = lambda: None
    about: str = ""

    @property
    def sleeps(self) -> bool:
        return self.course is not None


@dataclass
class Crew:
    """The workers of one server, and their queue."""

    world: World
    settings: Settings
    blobs: Any
    workflows: dict[str, Workflow] = field(default_factory=dict)
    workers: dict[str, PlayedWorker] = field(default_factory=dict)
    monotonic: float = 0.0
    born: int = 0
    known: set[str] = field(default_factory=set)
    """Workflows of before the play."""

    def hire(self) -> PlayedWorker:
        """Start a worker; its name is new, as every process's is."""
        self.born += 1
        name = f"worker-{self.born}"
        parts = InProcessWorker(self.world, self.settings, blobs=self.blobs, name=name)
        supervisor = Supervisor(
            database=parts.database,
            blobs=self.blobs,
            inspector=parts.inspector,
            worker=name,
            watch=heartbeats.Watch(LEASE),
            clock=self.world.clock,
            monotonic=lambda: self.monotonic,
        )
        with transaction(parts.database) as session:
            heartbeats.enter(session, name, HOST, self.world.clock())
        self.workers[name] = PlayedWorker(name, parts, supervisor)
        return self.workers[name]

    def chosen(self, number: int, *, asleep: bool | None = None) -> PlayedWorker | None:
        """Return one of the workers that are awake, or asleep, if there is any."""
        found = [worker for worker in self.workers.values() if asleep is None or worker.sleeps == asleep]
        return found[number % len(found)] if found else None

    # --- the queue ------------------------------------------------------------------------------------------------

    def enqueued(self) -> set[str]:
        """The ids of all workflows that the API ever enqueued."""
        table = sqlalchemy.table("workflow_status", sqlalchemy.column("workflow_uuid"))
        with reading(self.world.services.database) as session:
            table.schema = None if session.get_bind().dialect.name == "sqlite" else "dbos"
            return set(session.scalars(sqlalchemy.select(table.c.workflow_uuid)))

    def look(self) -> None:
        """Find what was enqueued since."""
        for identifier in sorted(self.enqueued() - self.known - self.workflows.keys()):
            self.workflows[identifier] = Workflow(identifier)

    def to_do(self, worker: PlayedWorker) -> list[Workflow]:
        """List what a worker can go on with: what waits, and its own merges whose shards are all there, or ended."""
        self.look()
        return [
            each
            for each in self.workflows.values()
            if not each.ended
            and (
                (each.claimed_by is None and self._is_due(worker, each))
                or (each.claimed_by == worker.name and each.plan is not None and self._is_due(worker, each))
            )
        ]

    def _is_due(self, worker: PlayedWorker, each: Workflow) -> bool:
        return each.plan is None or worker.parts.merger.is_complete(each.attempt) is not False

    def begin(self, worker: PlayedWorker, work: Workflow) -> None:
        """Claim a piece of work and stand before its first border."""
        if work.claimed_by is None or work.kind == MERGE:
            work.claimed_by, work.begun = worker.name, work.begun + 1
        planned: list[int | None] = []

        def note() -> None:
            if not planned or planned[0] is None:
                work.ended = True
            elif work.plan is None:
                work.plan, work.begun = planned[0], 0
                for task in range(planned[0]):
                    shard = f"{MERGE_SHARD}:{':'.join(work.subject)}:{task}"
                    self.workflows.setdefault(shard, Workflow(shard))

        self.send(worker, partial(self._carry_out, worker.parts, work, planned), note, about=work.id)

    def _carry_out(self, worker: InProcessWorker, work: Workflow, planned: list[int | None]) -> None:
        """Do the next step of a workflow, as `merging.workflows` and `worker` put it together."""
        merger, cut = worker.merger, self.settings.shard_bytes
        if work.kind == INSPECT:
            _tried(partial(worker.inspector.inspect, work.subject[0]))
        elif work.kind == MERGE_SHARD:
            task = int(work.subject[3])
            execute = partial(merger.execute, work.attempt, task, shard_bytes=cut)
            workflows._bounded(merger, work.attempt, execute, task=task)
        elif work.plan is None:
            planned.append(
                workflows._bounded(merger, work.attempt, partial(merger.plan, work.attempt, shard_bytes=cut))
            )
        else:
            workflows._bounded(merger, work.attempt, partial(merger.publish, work.attempt, shard_bytes=cut))

    def send(self, worker: PlayedWorker, step: Callable[[], object], note: Callable[[], None], *, about: str) -> None:
        """Have a worker stand before the first border of a step."""
        assert worker.course is None
        worker.course, worker.note, worker.about = Course(step), note, about

    def advance(self, worker: PlayedWorker, borders: int | None, *, dies: bool = False) -> bool:
        """Let a worker go on; tell whether its step came to its end, and is journaled."""
        course = worker.course
        assert course is not None
        course.advance(borders, dies=dies)
        if course.killed:
            del self.workers[worker.name]
            return False
        if course.ended:
            worker.course = None
            worker.note()
        return course.ended

    def kill(self, worker: PlayedWorker) -> None:
        """SIGKILL, wherever it is."""
        if worker.course is None:
            del self.workers[worker.name]
        else:
            self.advance(worker, 0, dies=True)

    # --- take-over ------------------------------------------------------------------------------------------------

    def take_over(self, observer: PlayedWorker, seconds: float) -> list[str]:
        """An observer looks, time goes by, in which those who are awake beat and it looks on, as one does that did not
        stand still itself; it frees what the dead have claimed. Return the dead."""
        holders = {each.claimed_by for each in self.workflows.values() if each.claimed_by and not each.ended}
        others = holders - {observer.name}
        dead = self._dead(observer, others)
        awake = {name for name, worker in self.workers.items() if not worker.sleeps}
        looks = math.ceil(seconds / heartbeats.PAUSE.total_seconds())
        for _ in range(looks):
            self.monotonic += seconds / looks
            with transaction(observer.parts.database) as session:
                for name in awake:
                    heartbeats.beat(session, name, self.world.clock())
            dead = self._dead(observer, others)
        assert not awake.intersection(dead)
        assert seconds < LEASE.total_seconds() or set(dead) == others - awake
        for each in self.workflows.values():
            if each.claimed_by in dead and not each.ended:
                each.claimed_by = None
                each.ended = each.kind != MERGE and each.begun > MAX_RECOVERY_ATTEMPTS
        return dead

    def _dead(self, observer: PlayedWorker, others: Iterable[str]) -> list[str]:
        with reading(observer.parts.database) as session:
            beats = heartbeats.last_beats(session, others)
        return observer.supervisor.watch.dead(beats, self.monotonic)

    def given_up(self) -> set[tuple[str, ...]]:
        """Subjects of the work that has killed every worker that tried it."""
        return {each.subject for each in self.workflows.values() if each.begun > MAX_RECOVERY_ATTEMPTS}

    def end_abandoned(self, worker: PlayedWorker) -> None:
        """End what cannot end by itself, as every worker does from time to time."""
        ended = {each.id for each in self.workflows.values() if each.ended}
        with patch.object(supervision, "_ended", lambda asked: ended & set(asked)):
            worker.supervisor.end_abandoned()


def _tried(step: Callable[[], object]) -> None:
    """Try a step as often as the inspections' workflow does; what fails then has ended, by the engine's account."""
    for _ in range(INSPECTION_TRIES):
        try:
            step()
        except Exception:  # noqa: BLE001, S112 - whatever it is
            continue
        return
