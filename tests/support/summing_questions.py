"""What a test knows of the stages of secure sums: enough to tell their states, and which masks could come off."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.secure import SignedMessage, Stage
from gramfuse_shared.contract.secure_session import SessionManifest, SummedTensor
from gramfuse_shared.secure.masks import Words
from gramfuse_shared.secure.unmasking import TensorSum, Transcript, plan_unmasking
from support.summing_members import Prepared, plain_words

UPLOAD_LIFETIME = timedelta(days=7)


@dataclass
class Question:
    """A request of a stage, the answers to it, and how far each is."""

    id: str
    stage: Stage
    after: "Question | None"
    session: SessionManifest
    deadline: datetime
    given: dict[str, str]
    taken_back: bool = False
    answers: dict[str, Prepared] = field(default_factory=dict)
    announced: dict[str, datetime] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    """Members whose words, as they were sent here, may be deleted."""

    def place(self, name: str, now: datetime) -> str:
        """Return how far an answer is."""
        state = self.given[name]
        return "expired" if state == "open" and self.announced[name] + UPLOAD_LIFETIME <= now else state

    def state(self, now: datetime, policy: Policy) -> str:
        """Return how far the request is: it follows from answers, deadline and policy."""
        states = list(self.given.values())
        accepted = states.count("accepted")
        if self.taken_back:
            return "cancelled"
        if accepted == len(states):
            return "complete"
        if now < self.deadline or "sealed" in states:
            return "open"
        fewest = max(policy.minimum_cohort, self.session.threshold)
        return "complete" if policy.missed_deadline == "leave_out" and accepted >= fewest else "failed"

    def speakers(self) -> list[str]:
        """Return whose messages count."""
        return sorted(name for name, state in self.given.items() if state == "accepted")

    def before(self, stage: Stage) -> "Question":
        """Return the request of an earlier stage that this one comes after, or itself."""
        at = self
        while at.stage != stage:
            assert at.after is not None
            at = at.after
        return at

    def said(self, names: Iterable[str]) -> list[SignedMessage]:
        return [message_of(self.answers[name]) for name in sorted(names)]

    def summed(self) -> list[str]:
        """Return whose words are summed by what was said: those who sent some, or those who were signed for."""
        if self.stage == "masked":
            return self.speakers()
        signed = self.said(self.speakers()) if self.stage == "survivors" else []
        return sorted({name for each in signed for name in each.message.body.organizations})

    def asked_of(self) -> list[str]:
        """Return whose words an answer is about."""
        return [] if self.after is None else self.after.summed()


def message_of(prepared: Prepared) -> SignedMessage:
    assert prepared.answer.message is not None
    return prepared.answer.message


@dataclass(frozen=True)
class Unmaskable:
    """So many shares of one sum's secrets that its masks come off, whether or not somebody may take them off."""

    question: Question
    organizations: Sequence[str]
    unmask: Sequence[SignedMessage]

    @property
    def contributions(self) -> set[str]:
        members = self.question.session.members
        return {member.contribution for member in members if member.organization in self.organizations}

    def require_exact(self) -> None:
        """Take the masks off, and require that what comes out are the plain words' sums."""
        session, at = self.question.session, self.question
        masked = [at.before("masked").answers[name] for name in self.organizations]
        shares, keys = at.before("shares"), at.before("keys")
        transcript = Transcript(
            keys=keys.said(keys.speakers()),
            shares=shares.said(shares.speakers()),
            masked=[message_of(each) for each in masked],
            unmask=self.unmask,
        )
        unmasking = plan_unmasking(session, transcript)
        count = sum(tensor.count for tensor in session.sums)
        words = [np.frombuffer(each.content[-8 * count :], dtype=np.uint64) for each in masked]
        start = 0
        for number, tensor in enumerate(session.sums):
            chunks = [each[start : start + tensor.count] for each in words]
            found = TensorSum(unmasking, number).add(chunks)
            assert np.array_equal(found, plain_sum(session, self.organizations, tensor))
            start += tensor.count


def plain_sum(session: SessionManifest, names: Iterable[str], tensor: SummedTensor) -> Words:
    total = np.zeros(tensor.count, dtype=np.uint64)
    for name in names:
        total += plain_words(session, name, tensor)
    return total


def unmaskable(questions: Sequence[Question]) -> Iterator[Unmaskable]:
    """Yield the sums whose masks come off, from all that was ever said, whatever requests it was said to."""
    groups: dict[tuple[str, str], dict[str, tuple[Question, SignedMessage]]] = {}
    for question in questions:
        for name in question.answers if question.stage == "unmask" else ():
            [signed] = question.said([name])
            key = (question.session.digest, signed.message.body.survivors)
            groups.setdefault(key, {})[name] = (question, signed)
    for (_, survivors), found in groups.items():
        question, _ = next(reversed(found.values()))
        if len(found) >= question.session.threshold:
            after = question.after
            assert after is not None
            sets = {
                tuple(signed.message.body.organizations)
                for signed in after.said(after.answers)
                if signed.message.body.masked == survivors
            }
            [organizations] = sets
            yield Unmaskable(question, organizations, [signed for _, signed in found.values()])


def revealed(questions: Sequence[Question]) -> Mapping[tuple[str, str], set[str]]:
    """Return by session and owner which of an owner's two secrets shares were revealed of."""
    found: dict[tuple[str, str], set[str]] = {}
    for question in questions:
        for signed in question.said(question.answers) if question.stage == "unmask" else ():
            for kind in ("seeds", "masking_keys"):
                for share in getattr(signed.message.body, kind):
                    found.setdefault((question.session.digest, share.owner), set()).add(kind)
    return found
