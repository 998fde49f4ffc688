"""A server that may do anything with messages, and a member that is its own: sums are exact, or there are none.

Hypothesis drives two sessions of the same contributions. The server shows members what it likes: messages in any order,
twice, left out, of the other session, of other stages, altered, signed by itself. Where one member colludes, that one
says everything twice, from two secrets, and signs whatever it is given. After every step, of what honest members said:
  1. to each stage of a session, one answer, the same bytes at every try,
  2. of each owner shares of one secret only, and who revealed any revealed them for one set of survivors, of t or more,
  3. no member revealed anything in both sessions.
With fewer than t shares of either secret, or t of one, a member's words stay masked but for the sum: Bonawitz et al.
(CCS 2017), theorem 6.5, needs no more than that. And whatever puts the sum together puts together the exact one.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gramfuse_shared.contract.secure import STAGES, SignedMessage, Survivors, SurvivorsMessage
from gramfuse_shared.errors import SecureSessionRefusedError, SignatureInvalidError
from gramfuse_shared.secure.signing import sign
from gramfuse_shared.secure.unmasking import TensorSum, Transcript, plan_unmasking
from support.secure_cohorts import Member, words_of
from support.secure_sessions import ORGANIZATIONS, identity_of, session_of

REFUSALS = (SecureSessionRefusedError, SignatureInvalidError)
BEFORE = dict(zip(STAGES[1:], STAGES[:-1], strict=True))
TAMPERINGS = ("nothing", "leave out", "twice", "other session", "other stage", "alter", "sign itself", "other persona")


class LyingServer(RuleBasedStateMachine):
    @initialize(members=st.sampled_from([3, 5, 7]), colludes=st.booleans())
    def begin(self, members: int, colludes: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lying-server-"))
        self.names = ORGANIZATIONS[:members]
        self.colluder = self.names[-1] if colludes else None
        self.sessions = [session_of(members, session=f"secure-{index}") for index in range(2)]
        # per session and persona, members; an honest one has one persona, and one folder for both sessions
        self.members = {
            (index, name, persona): Member(
                session, name, self.folder / (name if name != self.colluder else f"{name}-{index}-{persona}")
            )
            for index, session in enumerate(self.sessions)
            for name in self.names
            for persona in range(2 if name == self.colluder else 1)
        }
        self.said: list[dict[str, dict[tuple[str, int], SignedMessage]]] = [
            {stage: {} for stage in STAGES} for _ in self.sessions
        ]
        self.files: dict[tuple[int, str, int], Path] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    # --- what the server does ------------------------------------------------------------------------------------

    @rule(index=st.integers(0, 1), stages=st.integers(1, 3), absent=st.sets(st.integers(0, 6), max_size=1))
    def go_on(self, index: int, stages: int, absent: set[int]) -> None:
        """Ask everybody, but perhaps one, the next stages, as an honest server would."""
        begun = [stage for stage in STAGES if self.said[index][stage]]
        for stage in STAGES[len(begun) :][:stages]:
            shown = [self.message(index, BEFORE[stage], name, 0) for name in self.names] if stage in BEFORE else []
            for number, name in enumerate(self.names):
                if number not in absent:
                    self.ask(index, stage, name, 0, [signed for signed in shown if signed is not None])

    @rule(
        index=st.integers(0, 1),
        stage=st.sampled_from(STAGES),
        number=st.integers(0, 6),
        persona=st.integers(0, 1),
        tampering=st.sampled_from(TAMPERINGS),
        random=st.randoms(use_true_random=False),
    )
    def lie(self, index, stage, number, persona, tampering, random) -> None:
        name = self.names[number % len(self.names)]
        shown: list[SignedMessage] = []
        if stage in BEFORE:
            found = [self.message(index, BEFORE[stage], each, 0) for each in self.names]
            shown = [signed for signed in found if signed is not None]
            shown = self.tampered(shown, index, BEFORE[stage], tampering, random)
            random.shuffle(shown)
        self.ask(index, stage, name, persona, shown)

    @rule(index=st.integers(0, 1), kept=st.sets(st.integers(0, 6), min_size=3))
    def collude(self, index: int, kept: set[int]) -> None:
        """The server's own member signs any set of survivors."""
        before = self.said[index]["survivors"].get((self.names[0], 0))
        if self.colluder is not None and before is not None:
            names = tuple(name for number, name in enumerate(self.names) if number in kept) or self.names
            body = Survivors(masked=before.message.body.masked, organizations=names)
            message = SurvivorsMessage(session=self.sessions[index].digest, sender=self.colluder, body=body)
            self.said[index]["survivors"][self.colluder, 1] = sign(message, identity_of(self.colluder))

    def tampered(self, shown, index, stage, tampering, random) -> list[SignedMessage]:
        """Return what is shown instead; as it is where there is nothing to tamper with."""
        if not shown:
            return shown
        place = random.randrange(len(shown))
        victim, others = shown[place], shown[:place] + shown[place + 1 :]
        replacement: Callable[[], SignedMessage | None] = {
            "nothing": lambda: victim,
            "leave out": lambda: None,
            "twice": lambda: victim,
            "other session": lambda: self.message(1 - index, stage, victim.message.sender, 0),
            "other stage": lambda: self.message(index, STAGES[0], victim.message.sender, 0),
            "alter": lambda: self.altered(victim, random),
            "sign itself": lambda: sign(victim.message, identity_of("the server")),
            "other persona": lambda: self.message(index, stage, self.colluder or "", 1),
        }[tampering]
        if tampering == "other persona":
            others = [signed for signed in shown if signed.message.sender != self.colluder]
        replaced = replacement()
        shown = others if replaced is None else [*others, replaced]
        return [*shown, victim] if tampering == "twice" else shown

    def altered(self, victim: SignedMessage, random) -> SignedMessage:
        sender = random.choice(self.names)
        return victim.model_copy(update={"message": victim.message.model_copy(update={"sender": sender})})

    def ask(self, index: int, stage: str, name: str, persona: int, shown: Sequence[SignedMessage]) -> None:
        persona = persona if name == self.colluder else 0
        member = self.members[index, name, persona]
        try:
            answer = member.keys() if stage == "keys" else getattr(member, stage)(shown)
        except REFUSALS:
            return
        # 1.
        first = self.said[index][stage].setdefault((name, persona), answer)
        assert first.canonical() == answer.canonical() or (name == self.colluder and stage == "survivors")
        if stage == "masked":
            self.files[index, name, persona] = member.file(answer)

    def message(self, index: int, stage: str, name: str, persona: int) -> SignedMessage | None:
        return self.said[index][stage].get((name, persona))

    # --- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def of_each_member_one_secret_at_most_is_revealed(self) -> None:
        if not hasattr(self, "said"):
            return
        revealing: list[set[str]] = []
        for index, session in enumerate(self.sessions):
            bodies = {
                name: signed.message.body
                for (name, _), signed in self.said[index]["unmask"].items()
                if name != self.colluder
            }
            revealing.append(set(bodies))
            # 2.
            survivors = {frozenset(share.owner for share in body.seeds) for body in bodies.values()}
            assert len(survivors) <= 1
            assert all(len(names) >= session.threshold for names in survivors)
            dropped = {share.owner for body in bodies.values() for share in body.masking_keys}
            assert all(dropped.isdisjoint(names) for names in survivors)
        # 3.
        assert revealing[0].isdisjoint(revealing[1])

    @invariant()
    def a_sum_is_exact_or_there_is_none(self) -> None:
        if not hasattr(self, "said"):
            return
        for index, session in enumerate(self.sessions):
            for personas in product(range(2 if self.colluder else 1), repeat=4):
                found = [
                    self.stage_of(index, stage, persona)
                    for stage, persona in zip(("keys", "shares", "masked", "unmask"), personas, strict=True)
                ]
                if len(found[3]) < session.threshold:
                    continue
                try:
                    unmasking = plan_unmasking(session, Transcript(*found))
                except REFUSALS:
                    event("too little was revealed for a sum")
                    continue
                event("a sum was put together")
                names = [message.sender for message in unmasking.masked]
                words = [
                    np.fromfile(self.files[index, name, personas[2] if name == self.colluder else 0], dtype=np.uint64)
                    for name in names
                ]
                expected = np.zeros(3, dtype=np.uint64)
                for name in names:
                    expected += words_of(name)
                assert np.array_equal(TensorSum(unmasking, 0).add(words), expected)

    def stage_of(self, index: int, stage: str, persona: int) -> list[SignedMessage]:
        """All that was said in a stage; of the colluder as this persona."""
        said = self.said[index][stage]
        return [signed for (name, p), signed in said.items() if name != self.colluder or p == persona]


LyingServer.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestLyingServer = LyingServer.TestCase
