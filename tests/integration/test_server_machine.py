"""A server's whole life over HTTP, driven by Hypothesis: whoever is killed wherever, what must be is there, once.

Members announce contributions, send parts of them right, twice, wrong, half or out of order, seal and withdraw them;
the coordinator submits, cancels and retries jobs, publishes policies, deletes models. Members leave, are removed and
come back; the project is deleted, and whoever goes on is refused. The API is killed at any border
between two writes, and asked again. Workers inspect, merge and sweep from border to border: they are killed, sleep for
seconds or days while others take their work over, and go on where they were. After every step:
  1. states have moved along the documented arrows only, and only if somebody was at work,
  2. what callers asked is refused or granted as a pure model says (`support.server_model`),
  3. each seal and attempt is enqueued once, each job that succeeded has one model, and no other has any,
  4. every file that a row names is stored, and none lies there that no row knows; parts of open uploads are there,
  5. the quota is what is stored, and the audit log's chain is whole and has one row for each thing that happened.
In the end all work ends as it must, models can be pulled and verified, and a day later what is named is left, no more.
"""

import shutil
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gramfuse_server.settings import Settings
from support.played_workers import PlayedWorker
from support.server_model import Contribution, Job
from support.server_play import FAULTS, QUOTA, ServerPlay
from support.server_world import World
from support.worker_world import MEMBERS

NUMBERS = st.integers(0, 5)
BORDERS = st.one_of(st.none(), st.none(), st.integers(0, 12))
"""How far a step goes; mostly to its end."""
KILLED = st.one_of(st.none(), st.none(), st.integers(0, 5))
"""At which border the API is killed, if it is."""
COHORTS = st.sampled_from(((), (), (MEMBERS[0], MEMBERS[1]), MEMBERS))
HOWS = ("right", "right", "right", "wrong digest", "other bytes", "too far", "too long", "broken")
TROUBLES = ("stranger", "token", "policy", "accept", "accept", "stray", "given up", "leave", "leave", "remove", "end")


class ServerMachine(ServerPlay, RuleBasedStateMachine):
    def __init__(self, open_world: Callable[[], tuple[World, Settings]]) -> None:
        super().__init__()
        self.open_world = open_world

    @initialize()
    def begin(self) -> None:
        self.open(*self.open_world())

    def teardown(self) -> None:
        if hasattr(self, "model"):
            try:
                self.finish()
            finally:
                self.borders.revive_api()
                for worker in list(self.crew.workers.values()):
                    self.crew.kill(worker)
                self.world.services.database.close()
                shutil.rmtree(self.settings.server_home)

    # --- contributions --------------------------------------------------------------------------------------------

    def contribution(self, number: int, *states: str) -> Contribution | None:
        """Return one of the newest contributions, in one of these states if there is any."""
        newest = list(reversed(self.model.contributions.values()))
        found = [each for each in newest if each.state in states] or newest
        return found[number % len(found)]

    @rule(
        who=st.sampled_from(MEMBERS),
        seed=st.integers(0, 3),
        fault=st.sampled_from(FAULTS),
        old=st.booleans(),
        killed=KILLED,
    )
    def announce(self, who: str, seed: int, fault: str | None, old: bool, killed: int | None) -> None:
        self.create(who, seed, fault, old_policy=old, killed=killed)

    @rule(number=NUMBERS, place=NUMBERS, how=st.sampled_from(HOWS), killed=KILLED)
    def arrive(self, number: int, place: int, how: str, killed: int | None) -> None:
        self.send_part(self.contribution(number, "open"), place, how, killed=killed)

    @rule(number=NUMBERS, complete=st.booleans(), killed=KILLED)
    def close(self, number: int, complete: bool, killed: int | None) -> None:
        contribution = self.contribution(number, "open")
        if complete and self.model.why_no_part(contribution, self.clock.now) is None:
            self.send_parts(contribution)
        self.seal(contribution, killed=killed)

    @rule(who=st.sampled_from(MEMBERS), seed=st.integers(0, 3), fault=st.sampled_from(FAULTS))
    def push(self, who: str, seed: int, fault: str | None) -> None:
        """All of it in good order, as a client does that nobody disturbs."""
        self.accept_policy(who)
        contribution = self.create(who, seed, fault, old_policy=False, killed=None)
        if contribution is not None:
            self.send_parts(contribution)
            self.seal(contribution)

    @rule(number=NUMBERS, killed=KILLED)
    def take_back(self, number: int, killed: int | None) -> None:
        self.withdraw(self.contribution(number, "open", "sealed", "accepted"), killed=killed)

    # --- jobs and models ------------------------------------------------------------------------------------------

    def job(self, number: int, *states: str) -> Job | None:
        newest = list(reversed(self.model.jobs.values()))
        found = [each for each in newest if each.state in states] or newest
        return found[number % len(found)] if found else None

    @rule(again=st.booleans(), names=COHORTS, killed=KILLED)
    def ask(self, again: bool, names: tuple[str, ...], killed: int | None) -> None:
        number = len(self.model.jobs)
        self.submit(f"job-{max(number - again, 0)}", names, "linear", killed=killed)

    @rule(what=st.sampled_from(("retry", "cancel", "delete", "pull")), number=NUMBERS, killed=KILLED)
    def change(self, what: str, number: int, killed: int | None) -> None:
        match what:
            case "retry" if job := self.job(number, "failed", "cancelled"):
                self.retry(job, killed=killed)
            case "cancel" if job := self.job(number, "queued", "running"):
                self.cancel(job, killed=killed)
            case "delete" if job := self.job(number, "succeeded"):
                self.delete(job, killed=killed)
            case "pull" if job := self.job(number, "succeeded"):
                self.pull(job)

    # --- workers and time -----------------------------------------------------------------------------------------

    def awake(self, number: int) -> PlayedWorker:
        return self.crew.chosen(number, asleep=False) or self.crew.hire()

    @rule(worker=NUMBERS, choice=NUMBERS, borders=BORDERS, dies=st.booleans())
    def work(self, worker: int, choice: int, borders: int | None, dies: bool) -> None:
        """A worker goes to its end with a piece of work, or dies or falls asleep in its middle."""
        chosen = self.awake(worker)
        to_do = self.crew.to_do(chosen)
        if to_do:
            self.crew.begin(chosen, to_do[choice % len(to_do)])
            self.advance(chosen, borders, dies=dies)

    @rule(worker=NUMBERS, steps=st.integers(1, 8))
    def work_on(self, worker: int, steps: int) -> None:
        """A worker does piece after piece, undisturbed."""
        chosen = self.awake(worker)
        for _ in range(steps):
            to_do = self.crew.to_do(chosen)
            if not to_do:
                return
            self.crew.begin(chosen, to_do[0])
            self.advance(chosen, None)
            self.observe()

    @rule(worker=NUMBERS, borders=BORDERS, dies=st.booleans())
    def wake_up(self, worker: int, borders: int | None, dies: bool) -> None:
        """One that slept goes on, whatever became of its work."""
        chosen = self.crew.chosen(worker, asleep=True)
        if chosen is not None:
            self.advance(chosen, borders, dies=dies)

    @rule(worker=NUMBERS, other=NUMBERS, killed=st.booleans(), seconds=st.sampled_from((1.0, 6.0, 6.0)))
    def replace(self, worker: int, other: int, killed: bool, seconds: float) -> None:
        """A worker is killed, perhaps, and another looks who is dead."""
        if killed and (chosen := self.crew.chosen(worker)):
            self.crew.kill(chosen)
        self.crew.take_over(self.awake(other), seconds)

    @rule(worker=NUMBERS, borders=BORDERS, dies=st.booleans(), adopts=st.sampled_from((False, False, True)))
    def clean(self, worker: int, borders: int | None, dies: bool, adopts: bool) -> None:
        self.sweep(self.awake(worker), borders, dies=dies, adopts=adopts)

    @rule(hours=st.sampled_from((0.25, 1.0, 25.0, 25.0, 80.0, 200.0)))
    def wait(self, hours: float) -> None:
        self.pass_time(hours)

    @rule(what=st.sampled_from(TROUBLES), who=st.sampled_from(MEMBERS), seed=st.integers(0, 1), killed=KILLED)
    def trouble(self, what: str, who: str, seed: int, killed: int | None) -> None:
        match what:
            case "stranger":
                self.look_as_a_stranger()
            case "token":
                self.speak_with_a_token_that_ends()
            case "leave" if who != MEMBERS[0]:
                self.leave_and_return(who, by_coordinator=False)
            case "remove" if who != MEMBERS[0]:
                self.leave_and_return(who, by_coordinator=True, killed=killed)
            case "end" if seed:  # seldom: nothing but the end happens behind it
                self.end_project(killed=killed)
            case "policy" if self.model.version < 4 and not self.model.ended:
                self.publish_policy()
            case "accept":
                self.accept_policy(who)
            case "stray":
                self.leave_a_stray(seed)
            case "given up":
                self.end_abandoned(self.awake(0))

    # --- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        if not hasattr(self, "model"):
            return
        self.observe()
        self.require_shown_states()
        self.require_work()
        self.require_bytes()
        self.require_quota()
        self.require_audit_log()


@pytest.mark.timeout(1200)  # minutes on a machine that is busy, or exploring
def test_whoever_is_killed_wherever_what_must_be_is_there_once(ready_kept, open_copies, database_kind):
    share = 6 if database_kind == "sqlite" else 25
    run_state_machine_as_test(
        lambda: ServerMachine(lambda: open_copies(ready_kept, project_quota_bytes=QUOTA, shard_bytes=1500)),
        settings=settings(max_examples=settings().max_examples // share, stateful_step_count=30),
    )
