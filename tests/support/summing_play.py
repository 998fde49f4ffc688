"""Plays secure sums over HTTP, and knows what has to come of every step: who may ask, answer and merge what."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import numpy as np
import torch
from hypothesis import event

from gramfuse_server import heartbeats
from gramfuse_server.merging.summing import open_sums
from gramfuse_server.settings import Settings
from gramfuse_server.supervision import Supervisor
from gramfuse_shared import limits
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.secure import STAGES, SignedMessage, Stage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import SecureSessionRefusedError, SignatureInvalidError
from gramfuse_shared.secure.ring import decode
from gramfuse_shared.secure.signing import sign
from support.secure_sessions import identity_of
from support.server_world import World, problem
from support.summing_members import KilledError, Prepared, SummingMember
from support.summing_questions import Question, plain_sum
from support.worker_world import InProcessWorker

REFUSALS = (SecureSessionRefusedError, SignatureInvalidError)
SECONDS = 3600
LIES = ("another's", "unsigned", "other stage", "other session", "otherwise")
NAMING = {"shares": "keys", "masked": "shares", "survivors": "masked", "unmask": "survivors"}
"""By which field a stage's message names the messages that it answers."""


class SummingPlay:
    """A coordinator, its members and a worker. Every step that the server should refuse has to be refused."""

    def open(self, world: World, settings: Settings, names: Sequence[str], policy: Policy) -> None:
        """Begin in a project that everybody joined; everybody contributes."""
        self.world, self.settings, self.policy = world, settings, policy
        self.clock, self.project, self.coordinator = world.clock, f"{names[0]}.tweets", names[0]
        self.path = f"/v1/projects/{self.project}"
        folder = settings.server_home / "members"
        self.members = {name: SummingMember(world, self.project, name, folder / name, policy) for name in names}
        self.standing = {name: member.contribute(seed) for seed, (name, member) in enumerate(self.members.items())}
        self.seeds = len(names)
        self.questions: list[Question] = []
        self.submitted = 0
        self.queued: dict[str, Question] = {}
        self.merges: dict[str, Question] = {}
        """Jobs that have a model, or may have one."""

    # --- asking ---------------------------------------------------------------------------------------------------

    def chosen(self, choice: int) -> Question | None:
        """Return one of the requests; of 0 the next is asked, unless one is open."""
        asked = self.next_question() if choice == 0 else None
        return asked or (self.questions[-1 - choice % len(self.questions)] if self.questions else None)

    def name(self, number: int) -> str:
        return list(self.members)[number % len(self.members)]

    def place(self, question: Question, name: str) -> str:
        return f"{self.path}/requests/{question.id}/answers/{name}"

    def state(self, question: Question) -> str:
        return question.state(self.clock.now, self.policy)

    def next_question(self) -> Question | None:
        """Return the newest request that is open, or one that is asked after the newest that is complete."""
        for question in reversed(self.questions):
            if self.state(question) == "open" and self.stand(question, question.asked_of()):
                return question
            if self.state(question) == "complete":
                if question.stage == "unmask":
                    break
                if self.why_not_asked(question) is None:
                    return self.ask(STAGES[STAGES.index(question.stage) + 1], question)
        return self.ask("keys", None) if self.why_not_begun() is None else None

    def ask(self, stage: Stage, after: Question | None) -> Question | None:
        identifier, body = f"{stage}-{len(self.questions)}", {"kind": stage, "seconds": SECONDS}
        body |= {"recipe": {"merge_method": "linear"}} if after is None else {"after": after.id}
        answer = self.world.coordinator(self.coordinator).put(f"{self.path}/requests/{identifier}", json=body)
        refused = self.why_not_begun() if after is None else self.why_not_asked(after)
        if refused is not None:
            event(f"not asked: {stage}, {refused}")
            problem(answer, answer.status_code, refused)
            return None
        assert answer.status_code == 201, answer.text
        if after is None:
            shown = self.world.participant(self.coordinator).get(f"{self.path}/requests/{identifier}/session")
            session, asked = SessionManifest.parse(shown.content), sorted(self.standing)
            assert {member.organization: member.contribution for member in session.members} == self.standing
        else:
            session, asked = after.session, after.speakers()
        deadline = datetime.fromisoformat(answer.json()["deadline"])
        self.questions.append(Question(identifier, stage, after, session, deadline, dict.fromkeys(asked, "awaited")))
        return self.questions[-1]

    def why_not_begun(self) -> str | None:
        """Return the code by which a new session is refused."""
        if len(self.standing) < self.policy.minimum_cohort:
            return "policy-violation"
        if any(set(question.asked_of()) != self.standing.keys() for question in self.merges.values()):
            return "cohort-frozen"
        unmasked = [each.session for each in self.questions if each.stage == "unmask" and each.answers]
        again = {member.contribution for session in unmasked for member in session.members}
        return "wrong-state" if again & set(self.standing.values()) else None

    def why_not_asked(self, after: Question) -> str | None:
        """Return the code by which the stage after a request is refused."""
        goes_on = self.state(after) == "complete" and not self.is_abandoned(after.session)
        goes_on = goes_on and self.stand(after, after.summed())
        return None if goes_on else "wrong-state"

    def stand(self, question: Question, names: Iterable[str]) -> bool:
        """Tell whether these members' contributions are still the ones that a question is about."""
        return all(self.stands(question, name) for name in names)

    def stands(self, question: Question, name: str) -> bool:
        member = question.session.member(name)
        return member is not None and self.standing.get(name) == member.contribution

    def is_abandoned(self, session: SessionManifest) -> bool:
        last = max(each.deadline for each in self.questions if each.session is session)
        return last + limits.LONGEST_SESSION_PAUSE <= self.clock.now

    def take_back(self, question: Question) -> None:
        state = self.state(question)
        answer = self.world.coordinator(self.coordinator).post(f"{self.path}/requests/{question.id}/cancel")
        if state in {"open", "cancelled"}:
            assert answer.status_code == 200, answer.text
            question.taken_back = True
        else:
            problem(answer, 409, "wrong-state")

    def contribute(self, name: str) -> None:
        self.seeds += 1
        self.standing[name] = self.members[name].contribute(self.seeds)

    def withdraw(self, name: str) -> None:
        """Its words go, wherever they were sent, and jobs that would merge it end."""
        self.members[name].withdraw(self.standing[name])
        for job, question in list(self.queued.items()):
            if self.stands(question, name) and name in question.asked_of():
                del self.queued[job], self.merges[job]
        del self.standing[name]
        for question in self.questions:
            if question.stage == "masked" and question.given.get(name) in {"open", "sealed", "accepted"}:
                question.given[name] = "withdrawn"
                question.forgotten.add(name)

    # --- answering ------------------------------------------------------------------------------------------------

    def prepared(self, question: Question, name: str, *, killed: bool = False) -> Prepared | None:
        try:
            return self.members[name].prepare(question.id, question.stage, killed=killed)
        except KilledError:
            event("killed while words were written")
        except REFUSALS:
            event(f"the member refuses: {question.stage}")
        return None

    def may_speak(self, question: Question, name: str) -> bool:
        """Tell whether a member's contribution, and all that are summed, still count."""
        return self.stand(question, [name, *question.asked_of()])

    def answer(self, question: Question, name: str, *, parts: int | None = None, killed: bool = False) -> None:
        """Let a member answer, whatever the request's state, and send some parts of its file, or all of it."""
        found = self.prepared(question, name, killed=killed) if name in question.given else None
        if found is None or (parts is not None and not found.content):
            return
        now = self.clock.now
        place, in_time = question.place(name, now), self.state(question) == "open" and now < question.deadline
        answer = self.world.participant(name).put_document(self.place(question, name), found.answer)
        if place in {"awaited", "expired"}:
            if not in_time or not self.may_speak(question, name):
                event("an answer comes late" if not in_time else "an answer is of what does not stand")
                problem(answer, 409, "wrong-state")
                return
            assert answer.status_code == 201, answer.text
            question.answers[name], question.announced[name] = found, now
            question.given[name] = place = "open" if found.content else "accepted"
        assert answer.status_code in {200, 201}, answer.text
        assert question.answers[name] == found
        if place == "open":
            sealed = self.members[name].send(found, answer.json(), parts=parts)
            if sealed is not None and now < question.deadline:
                assert sealed.status_code == 200, sealed.text
                question.given[name] = "sealed"
            elif sealed is not None:
                event("words are sealed late")
                problem(sealed, 409, "wrong-state")

    # --- working --------------------------------------------------------------------------------------------------

    def work(self, merges: int = 1) -> None:
        """A worker inspects what is sealed, and merges so many of the queued sums."""
        worker = InProcessWorker(self.world, self.settings)
        assert set(worker.inspect_all()) <= {"accepted"}
        for question in self.questions:
            question.given |= {name: "accepted" for name, state in question.given.items() if state == "sealed"}
        for job in list(self.queued)[:merges]:
            self.carry_out(worker, job, self.queued.pop(job))

    def carry_out(self, worker: InProcessWorker, job: str, question: Question) -> None:
        attempt, session = worker.attempt(self.project, job), question.session
        count = worker.merger.plan(attempt, shard_bytes=self.settings.shard_bytes)
        sums, names = open_sums(attempt, self.world.services.blobs), question.asked_of()
        for tensor in session.sums:
            wanted = torch.from_numpy(plain_sum(session, names, tensor).view(np.int64))
            assert torch.equal(sums.read(tensor.name).view(-1), decode(wanted, tensor))
        for task in range(count or 0):
            worker.merger.execute(attempt, task, shard_bytes=self.settings.shard_bytes)
        assert worker.merger.publish(attempt, shard_bytes=self.settings.shard_bytes)
        event(f"a sum of {len(names)} of {len(session.members)} is merged")
        summed = {member.contribution for member in session.members if member.organization in names}
        merging = [other.session for other in self.queued.values()]
        for each in self.questions:
            if each.session in merging or each.stage != "masked":
                continue
            if summed & {member.contribution for member in each.session.members}:
                each.forgotten |= each.answers.keys()

    def submit(self, question: Question) -> None:
        self.submitted += 1
        job, recipe = f"job-{self.submitted}", {"merge_method": "linear", "request": question.id}
        answer = self.world.coordinator(self.coordinator).put(f"{self.path}/jobs/{job}", json={"recipe": recipe})
        refused = self.why_not_merged(question)
        if refused is not None:
            event(f"not merged: {question.stage}, {refused}")
            problem(answer, answer.status_code, refused)
            return
        assert answer.status_code == 201, answer.text
        assert sorted(member["organization"] for member in answer.json()["cohort"]) == question.asked_of()
        self.queued[job] = self.merges[job] = question

    def why_not_merged(self, question: Question) -> str | None:
        """Return the code by which the merge of a sum is refused."""
        if question.stage != "unmask":
            return "recipe-invalid"
        names = question.asked_of()
        if (
            self.state(question) != "complete"
            or not self.stand(question, names)
            or question.before("masked").forgotten & set(names)
        ):
            return "wrong-state"
        return "cohort-frozen" if any(names != each.asked_of() for each in self.merges.values()) else None

    def sweep(self) -> None:
        """What a worker does from time to time; words stay as long as something may become of them."""
        worker = InProcessWorker(self.world, self.settings)
        watch = heartbeats.Watch(timedelta(seconds=1))
        Supervisor(worker.database, self.world.services.blobs, worker.inspector, "w", watch, self.clock).sweep()
        masked = [question for question in self.questions if question.stage == "masked"]
        being_merged = {question.session.digest for question in self.queued.values()}
        kept, spent = set(), set()
        for question in masked:
            for name in question.answers:
                question.given[name] = question.place(name, self.clock.now)
            if self.is_abandoned(question.session) and question.session.digest not in being_merged:
                question.forgotten |= question.answers.keys()
            for name in question.speakers():
                words = f"sha256/{question.answers[name].answer.files[0].sha256}"
                (spent if name in question.forgotten else kept).add(words)
        stored = self.world.stored_keys()
        assert kept <= stored
        assert not (spent - kept) & stored

    # --- lying ----------------------------------------------------------------------------------------------------

    def lied(self, lie: str, question: Question, own: SignedMessage, choice: int) -> SignedMessage | None:
        message, identity = own.message, identity_of(own.message.sender)
        others = [signed for each in self.questions for signed in each.said(each.answers)]
        match lie:
            case "another's":
                others = [signed for signed in others if signed.message.sender != message.sender]
                return others[choice % len(others)] if others else None
            case "other stage":
                others = [s for s in others if s.message.sender == message.sender and s.message.stage != question.stage]
                return others[choice % len(others)] if others else None
            case "unsigned":
                return sign(message, identity_of("nobody"))
            case "other session":
                return sign(message.model_copy(update={"session": "0" * 64}), identity)
        if question.stage == "keys":
            return None
        body = message.body.model_copy(update={NAMING[question.stage]: "0" * 64})
        return sign(message.model_copy(update={"body": body}), identity)

    def code_of(self, lie: str, question: Question, signed: SignedMessage) -> str:
        if signed.message.stage != question.stage:
            return "request-malformed"
        return "signature-invalid" if lie == "unsigned" else "secure-session-refused"
