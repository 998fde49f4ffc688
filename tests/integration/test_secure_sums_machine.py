"""Secure sums over HTTP, driven by Hypothesis: whatever happens in whatever order, a sum is exact or stays masked.

Three or five members answer stages, twice, otherwise, partly, late or not at all; they are killed, withdraw and
contribute anew; the coordinator asks stages again, takes them back, has sums merged; the server is made anew, sweeps,
and days go by. What the server should refuse, it has to. After every step:
  1. the state of a request follows from its answers, its deadline and the policy,
  2. of each session, stage and member one message is stored at most, whatever requests it answered,
  3. no byte that is stored is of words without masks,
  4. of each owner shares of one secret only are revealed, a contribution is in one sum at most whose masks come off,
     and they come off the exact sum.
At the end, a sum whose masks come off is the cohort's if it asks for it.
"""

import shutil
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gramfuse_server.app import create_app
from gramfuse_server.database import reading
from gramfuse_server.settings import Settings
from gramfuse_server.tables import AskedRow
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.secure import STAGES, SignedMessage, Stage
from support.secure_sessions import ORGANIZATIONS
from support.server_world import World, problem
from support.summing_members import plain_words
from support.summing_play import LIES, SummingPlay
from support.summing_questions import message_of, revealed, unmaskable

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # rules, no queries

POLICY = Policy(aggregation="secure", methods=("linear",))
LENIENT = POLICY.model_copy(update={"missed_deadline": "leave_out"})
COHORTS = ((ORGANIZATIONS[:3], POLICY), (ORGANIZATIONS[1:6], POLICY), (ORGANIZATIONS[2:7], LENIENT))
"""A project of each on one server, so that one beginning is played for all."""

AHEAD = st.integers(0, 5)
"""So many stages pass before."""
CHOICES = st.sampled_from((0, 0, 0, 1, 1, 2, 4))
"""Of requests: 0 is the one that is open, or asked next, and others are so much older than the newest."""
TROUBLES = ("restart", "sweep", "all contribute", "take back", "a day", "eight days")


class SumsOverHttp(SummingPlay, RuleBasedStateMachine):
    def __init__(self, open_world: Callable[[], tuple[World, Settings]]) -> None:
        super().__init__()
        self.open_world = open_world

    @initialize(cohort=st.sampled_from(COHORTS))
    def begin(self, cohort: tuple[Sequence[str], Policy]) -> None:
        self.open(*self.open_world(), *cohort)
        self.seen = self.world.stored_keys()
        self.parsed: dict[str, SignedMessage] = {}

    def teardown(self) -> None:
        if hasattr(self, "seen"):
            try:
                self.what_could_be_unmasked_is_given_to_who_asks()
            finally:
                self.world.services.database.close()
                shutil.rmtree(self.settings.server_home)

    # --- what happens ---------------------------------------------------------------------------------------------

    @rule(stages=st.integers(1, 5))
    def go_on(self, stages: int, absent: str | None = None) -> None:
        """Ask the next stages, as the coordinator's client does, and answer, as others' clients do."""
        for _ in range(stages):
            question = self.next_question()
            if question is None:
                return
            for name in self.members:
                if name != absent and question.given.get(name) in {"awaited", "open"}:
                    self.answer(question, name)
            self.work()
            if self.state(question) == "open":
                self.clock.advance(hours=2)

    @rule(ahead=AHEAD, number=st.integers(0, 4))
    def miss(self, ahead: int, number: int) -> None:
        """One member misses a deadline."""
        self.go_on(ahead)
        self.go_on(1, absent=self.name(number))

    @rule(ahead=AHEAD, stage=st.sampled_from(STAGES), choice=st.integers(0, 2))
    def ask_anew(self, ahead: int, stage: Stage, choice: int) -> None:
        """Ask a stage again, after whichever request of the one before, however far that is."""
        self.go_on(ahead)
        before = self.questions
        if stage != "keys":
            before = [each for each in self.questions if each.stage == STAGES[STAGES.index(stage) - 1]]
        if before:
            self.ask(stage, None if stage == "keys" else before[-1 - choice % len(before)])

    @rule(ahead=AHEAD, choice=CHOICES, number=st.integers(0, 4), again=st.booleans())
    def speak(self, ahead: int, choice: int, number: int, again: bool) -> None:
        """One member answers a request, perhaps an old one, and perhaps twice; what it seals waits for a worker."""
        self.go_on(ahead)
        question = self.chosen(choice)
        for _ in range(1 + again if question else 0):
            self.answer(question, self.name(number))

    @rule(ahead=AHEAD, number=st.integers(0, 4), parts=st.integers(0, 1), killed=st.booleans(), late=st.booleans())
    def drop(self, ahead: int, number: int, parts: int, killed: bool, late: bool) -> None:
        """One member is killed while it writes words, before it sends its answer, or between parts; it comes back."""
        self.go_on(ahead)
        question = self.chosen(0)
        if question:
            self.answer(question, self.name(number), parts=parts, killed=killed)
            self.clock.advance(hours=late)
            self.answer(question, self.name(number))

    @rule(ahead=AHEAD, choice=CHOICES, number=st.integers(0, 4), lie=st.sampled_from(LIES))
    def lie(self, ahead: int, choice: int, number: int, lie: str) -> None:
        """A member sends a message that is not its own, or no answer to this request; nothing comes of it."""
        self.go_on(ahead)
        question, name = self.chosen(choice), self.name(number)
        place = None if question is None else question.given.get(name)
        may_come = question and self.may_speak(question, name) and self.state(question) == "open"
        if question is None or place is None or not (may_come or question.answers.get(name)):
            return
        own = question.answers.get(name) or self.prepared(question, name)
        signed = None if own is None else self.lied(lie, question, message_of(own), number)
        if own is not None and signed is not None and question.place(name, self.clock.now) != "expired":
            event(f"a lie: {lie}" + ("" if place == "awaited" else ", beside an answer"))
            answer = own.answer.model_copy(update={"message": signed})
            refused = self.world.participant(name).put_document(self.place(question, name), answer)
            code = self.code_of(lie, question, signed) if place == "awaited" else "conflict"
            problem(refused, refused.status_code, code)

    @rule(ahead=AHEAD, asks=st.booleans(), number=st.integers(0, 4), withdraws=st.booleans())
    def change_mind(self, ahead: int, asks: bool, number: int, withdraws: bool) -> None:
        """A member withdraws, or contributes anew, when a stage was asked or before; others know nothing of it."""
        self.go_on(ahead)
        name, asked = self.name(number), self.next_question() if asks else None
        if withdraws and name in self.standing:
            self.withdraw(name)
        else:
            self.contribute(name)
        for each in self.members if asked else ():
            self.answer(asked, each)

    @rule(ahead=AHEAD, what=st.sampled_from(TROUBLES), choice=CHOICES)
    def trouble(self, ahead: int, what: str, choice: int) -> None:
        self.go_on(ahead)
        match what:
            case "restart":
                self.world.services.database.close()
                self.world.app = create_app(self.settings, clock=self.clock)
            case "sweep":
                self.sweep()
            case "all contribute":
                for each in self.members:
                    self.contribute(each)
            case "take back" if question := self.chosen(choice):
                self.take_back(question)
            case "a day":
                self.clock.advance(days=1)
            case "eight days":
                self.clock.advance(days=8)

    @rule(ahead=AHEAD, choice=st.integers(0, 2), merges=st.integers(0, 2))
    def merge(self, ahead: int, choice: int, merges: int) -> None:
        """The coordinator has a sum merged, and a worker has time for so many merges now."""
        self.go_on(ahead)
        last = [question for question in self.questions if question.stage in STAGES[-2:]]
        if last:
            self.submit(last[-1 - choice % len(last)])
        self.work(merges)

    # --- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def a_request_is_as_far_as_its_answers_its_deadline_and_the_policy_say(self) -> None:
        if not hasattr(self, "seen"):
            return
        listed = self.world.participant(self.coordinator).get(f"{self.path}/requests", params={"limit": 100}).json()
        found = {
            item["id"]: (item["state"], {place["organization"]: place["state"] for place in item["asked"]})
            for item in listed["items"]
        }
        now = self.clock.now
        assert found == {
            question.id: (self.state(question), {name: question.place(name, now) for name in question.given})
            for question in self.questions
        }

    @invariant()
    def of_each_member_and_stage_one_message_is_stored(self) -> None:
        if not hasattr(self, "seen"):
            return
        with reading(self.world.services.database) as session:
            stored = session.query(AskedRow.answer).filter(
                AskedRow.project == self.project, AskedRow.answer.is_not(None)
            )
            documents = [row.answer for row in stored]
        said: dict[tuple[str, str, str], str] = {}
        for document in documents:
            signed = self.parsed.setdefault(document, Answer.parse(document).message)
            key = (signed.message.session, signed.message.stage, signed.message.sender)
            assert said.setdefault(key, signed.canonical()) == signed.canonical()

    @invariant()
    def no_byte_that_is_stored_is_of_words_without_masks(self) -> None:
        if not hasattr(self, "seen"):
            return
        new = self.world.stored_keys() - self.seen
        sessions = {question.session.digest: question.session for question in self.questions}.values()
        plain = [
            plain_words(session, member.organization, tensor)
            for session in sessions
            for member in session.members
            for tensor in session.sums
        ]
        for key in new:
            content = self.world.services.blobs.read(key, 0, self.world.services.blobs.size(key))
            for first in range(8):
                words = np.frombuffer(content[first : len(content) - (len(content) - first) % 8], dtype=np.uint64)
                assert not np.isin(words, np.concatenate(plain)).any(), key
        self.seen |= new

    @invariant()
    def masks_come_off_one_sum_of_a_contribution_and_it_is_exact(self) -> None:
        if not hasattr(self, "seen"):
            return
        assert all(len(kinds) == 1 for kinds in revealed(self.questions).values())
        unmasked: set[str] = set()
        for found in unmaskable(self.questions):
            assert not unmasked & found.contributions
            unmasked |= found.contributions
            found.require_exact()

    def what_could_be_unmasked_is_given_to_who_asks(self) -> None:
        """Everybody is there again, and nobody changes its mind: what was revealed is not wasted."""
        self.work(len(self.queued))
        for found in unmaskable(self.questions):
            question = found.question
            merged = any(each.session is question.session for each in self.merges.values())
            if merged or not self.stand(question, found.organizations) or self.is_abandoned(question.session):
                continue
            if self.state(question) not in {"open", "complete"}:
                question = self.ask("unmask", question.after)
                assert question is not None
            for name in self.members:
                self.answer(question, name)
            assert self.why_not_merged(question) is None, self.state(question)
            self.submit(question)
            self.work()
            event("a sum that was left behind is merged")


def be_ready(world: World, _: Settings) -> None:
    for names, policy in COHORTS:
        world.project(*names, policy=policy)


def test_a_sum_over_http_is_exact_or_stays_masked_whatever_happens_between_its_stages(keep, open_copies):
    run_state_machine_as_test(
        lambda: SumsOverHttp(lambda: open_copies(keep(be_ready), part_bytes=2048)),
        settings=settings(max_examples=settings().max_examples // 4, stateful_step_count=7),
    )
