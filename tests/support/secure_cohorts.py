"""A cohort in one process: members with their folders, a server that only passes messages on, and what is summed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gramfuse.securing.kept import KeptSession, KeptSessions
from gramfuse.securing.participant import Participant, WriteWords
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.secure import SignedMessage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.secure.masks import Mask, TensorMasks, Words
from gramfuse_shared.secure.unmasking import TensorSum, Transcript, Unmasking, plan_unmasking
from support.secure_sessions import ACCEPTED, identity_of


def words_of(organization: str, count: int = 3) -> Words:
    """Return a member's words before they are masked: the same at every call."""
    seed = int.from_bytes(hashlib.sha256(organization.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@dataclass
class Member:
    """A member that can be switched off and on again: all that it knows lies in its folder."""

    session: SessionManifest
    organization: str
    folder: Path
    words: Words | None = None
    policy: Policy = ACCEPTED
    write: WriteWords | None = None

    def participant(self) -> Participant:
        sessions = KeptSessions(self.folder)
        return Participant.join(self.session, self.organization, identity_of(self.organization), sessions, self.policy)

    def write_words(self, kept: KeptSession, masks: Sequence[Mask]) -> FileEntry:
        words = (words_of(self.organization) if self.words is None else self.words).copy()
        TensorMasks(masks, 0).add_to(words)
        content = words.tobytes()
        digest = hashlib.sha256(content).hexdigest()
        kept.words(digest).write_bytes(content)
        return FileEntry(name="words.safetensors", bytes=len(content), sha256=digest)

    def keys(self) -> SignedMessage:
        return self.participant().keys()

    def shares(self, shown: Sequence[SignedMessage]) -> SignedMessage:
        return self.participant().shares(shown)

    def masked(self, shown: Sequence[SignedMessage]) -> SignedMessage:
        return self.participant().masked(shown, self.write or self.write_words)

    def survivors(self, shown: Sequence[SignedMessage]) -> SignedMessage:
        return self.participant().survivors(shown)

    def unmask(self, shown: Sequence[SignedMessage]) -> SignedMessage:
        return self.participant().unmask(shown)

    def file(self, signed: SignedMessage) -> Path:
        """Return where the words lie that a message announces."""
        return self.participant().kept.words(signed.message.body.words.sha256)


@dataclass
class Cohort:
    """All members, and what the server has seen of them."""

    session: SessionManifest
    members: Mapping[str, Member]
    keys: dict[str, SignedMessage] = field(default_factory=dict)
    shares: dict[str, SignedMessage] = field(default_factory=dict)
    masked: dict[str, SignedMessage] = field(default_factory=dict)
    survivors: dict[str, SignedMessage] = field(default_factory=dict)
    unmask: dict[str, SignedMessage] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, session: SessionManifest, folder: Path, policy: Policy = ACCEPTED) -> "Cohort":
        members = {name: Member(session, name, folder / name, policy=policy) for name in session.organizations}
        return cls(session, members)

    def run(self, **answering: Sequence[str]) -> None:
        """Run the stages; `keys=(…)` names who answers there, from there on; default: all of them."""
        present = list(self.session.organizations)
        before: list[SignedMessage] = []
        for stage in ("keys", "shares", "masked", "survivors", "unmask"):
            present = [name for name in answering.get(stage, present) if name in present]
            said: dict[str, SignedMessage] = getattr(self, stage)
            for name in present:
                ask = getattr(self.members[name], stage)
                said[name] = ask() if stage == "keys" else ask(before)
                if stage == "masked":
                    self.files[name] = self.members[name].file(said[name])
            before = list(said.values())

    def unmasking(self) -> Unmasking:
        transcript = Transcript(
            keys=list(self.keys.values()),
            shares=list(self.shares.values()),
            masked=list(self.masked.values()),
            unmask=list(self.unmask.values()),
        )
        return plan_unmasking(self.session, transcript)

    def sum(self) -> Words:
        unmasking = self.unmasking()
        return TensorSum(unmasking, 0).add(
            [np.fromfile(self.files[message.sender], dtype=np.uint64) for message in unmasking.masked]
        )

    def expected(self, organizations: Sequence[str]) -> Words:
        """Add the words of these members up without any mask."""
        total = np.zeros(3, dtype=np.uint64)
        for name in organizations:
            words = self.members[name].words
            total += words_of(name) if words is None else words
        return total
