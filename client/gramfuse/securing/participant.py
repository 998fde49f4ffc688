"""A member of a secure session: five answers, each kept before it is handed out, so that a retry has the same bytes.

Each answer is a function of the session's secret and of what was shown, and of each stage one answer exists. What is
refused changes nothing: the next try may show what belongs there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse.securing.kept import Completed, KeptSession, KeptSessions, Step
from gramfuse.securing.rules import (
    claim_of,
    require_masked,
    require_own,
    require_shares,
    require_signed_set,
    require_survivors,
)
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.secure import (
    Keys,
    KeysMessage,
    Masked,
    MaskedMessage,
    RevealedShare,
    SealedShares,
    SessionMessage,
    Shares,
    SharesMessage,
    SignedMessage,
    Survivors,
    SurvivorsMessage,
    Unmask,
    UnmaskMessage,
    roster_digest,
)
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import SecureSessionRefusedError
from gramfuse_shared.secure.keys import ROOT_BYTES, Secrets, encode_share
from gramfuse_shared.secure.masks import Mask
from gramfuse_shared.secure.signing import M, of_kind, require_roster, sign, stage_of

WriteWords = Callable[[KeptSession, Sequence[Mask]], FileEntry]
"""Writes the file of masked words into a session's folder and tells its digest: the same words at each call."""


@dataclass(frozen=True)
class Participant:
    """One organization's side of one session that it may take part in (`rules.require_session`)."""

    session: SessionManifest
    organization: str
    identity: Ed25519PrivateKey
    sessions: KeptSessions
    kept: KeptSession
    policy: Policy

    @classmethod
    def join(
        cls,
        session: SessionManifest,
        organization: str,
        identity: Ed25519PrivateKey,
        sessions: KeptSessions,
        policy: Policy,
    ) -> Self:
        """Begin, or go on where it was left.

        Args:
            session: the manifest, which was checked.
            organization: this member.
            identity: its key.
            sessions: where sessions of this project are kept.
            policy: the one that was accepted.

        Raises:
            SecureSessionRefusedError: a sum of this contribution, or of these answers, was completed before.
            FileUnwritableError, FileUnreadableError: the folder.
        """
        _require_unclaimed(sessions.completed_under(claim_of(session, organization)), session)
        return cls(session, organization, identity, sessions, sessions.session(session.digest), policy)

    @cached_property
    def secrets(self) -> Secrets:
        """What follows from the session's secret; raises SecureSessionRefusedError where it was removed."""
        return Secrets(self.session, self.organization, self.kept.secret(ROOT_BYTES))

    def keys(self) -> SignedMessage:
        """Answer the first stage."""
        return self._answer(KeysMessage, (), self._public)

    def _public(self) -> Keys:
        return self.secrets.public()

    def shares(self, shown: Sequence[SignedMessage]) -> SignedMessage:
        """Answer all members' keys.

        Raises:
            SignatureInvalidError, SecureSessionRefusedError: they are not t or more of this session's, or others than
                the ones that were answered.
        """
        keys = require_roster(shown, self.session, KeysMessage)
        require_own(keys, self._said(KeysMessage))
        return self._answer(SharesMessage, shown, lambda: self._sealed(keys))

    def _sealed(self, keys: Sequence[KeysMessage]) -> Shares:
        sealed = tuple(
            SealedShares(recipient=other.sender, ciphertext=self.secrets.seal(other.sender, other.body))
            for other in keys
            if other.sender != self.organization
        )
        return Shares(keys=roster_digest(keys), sealed=sealed)

    def masked(self, shown: Sequence[SignedMessage], write_words: WriteWords) -> SignedMessage:
        """Answer all members' shares with a file of masked words, which lies at `kept.words(…)` then.

        Raises:
            SignatureInvalidError, SecureSessionRefusedError: as above; what somebody encrypted for this member cannot
                be decrypted; or the words would be others than the ones that were announced.
            ValueOutOfBoundsError: a value may not be sent; nothing is.
        """
        shares = require_roster(shown, self.session, SharesMessage)
        mine = self._said(SharesMessage)
        require_shares(shares, self._shown(SharesMessage, KeysMessage), mine)
        announced = self._keys()
        for message in shares:
            self._unsealed(message, announced)
        others = [(m.sender, announced[m.sender]) for m in shares if m.sender != self.organization]

        def write() -> FileEntry:
            return write_words(self.kept, self.secrets.masks(others))

        signed = self._answer(MaskedMessage, shown, lambda: Masked(shares=roster_digest(shares), words=write()))
        words = self._said(MaskedMessage).body.words
        if not self.kept.words(words.sha256).exists() and write() != words:
            # two different sets of words under one mask would reveal their difference
            msg = "weights or statistics changed since masked words of them were announced; nothing more is sent"
            raise SecureSessionRefusedError(msg)
        return signed

    def survivors(self, shown: Sequence[SignedMessage]) -> SignedMessage:
        """Answer who sent masked words: these and no others may be summed. One set is signed in a session.

        Raises:
            SignatureInvalidError, SecureSessionRefusedError: as above.
        """
        masked = require_roster(shown, self.session, MaskedMessage)
        require_masked(masked, self._shown(MaskedMessage, SharesMessage), self._said(MaskedMessage))
        organizations = tuple(message.sender for message in masked)
        require_survivors(organizations, self.policy, self._completed_before())
        body = Survivors(masked=roster_digest(masked), organizations=organizations)
        return self._answer(SurvivorsMessage, shown, lambda: body)

    def unmask(self, shown: Sequence[SignedMessage]) -> SignedMessage:
        """Answer that t members signed the same set: reveal one share of one secret of each. Once in a session.

        Raises:
            SignatureInvalidError, SecureSessionRefusedError: as above; or another session of this contribution, or
                of answers to this request, was completed.
        """
        signatures = require_roster(shown, self.session, SurvivorsMessage)
        mine = self._said(SurvivorsMessage)
        require_signed_set(signatures, mine)
        weights = {member.organization: member.weight for member in self.session.members}
        completed = Completed(
            session=self.session.digest,
            weights={name: weights[name] for name in mine.body.organizations},
            method=self.session.recipe.merge_method,
            parameters=self.session.recipe.parameters,
        )
        claim = claim_of(self.session, self.organization)
        _require_unclaimed(self.sessions.complete(claim, completed), self.session)
        # which t of them signed does not matter
        return self._answer(UnmaskMessage, (), lambda: self._revealed(mine.body))

    def _revealed(self, signed: Survivors) -> Unmask:
        announced = self._keys()
        seeds, masking_keys = [], []
        for message in self._shown(MaskedMessage, SharesMessage):
            masking_key, seed = self._unsealed(message, announced)
            if message.sender in signed.organizations:
                seeds.append(RevealedShare(owner=message.sender, share=encode_share(seed)))
            else:
                masking_keys.append(RevealedShare(owner=message.sender, share=encode_share(masking_key)))
        return Unmask(survivors=signed.masked, seeds=tuple(seeds), masking_keys=tuple(masking_keys))

    def _unsealed(self, message: SharesMessage, announced: dict[str, Keys]) -> tuple[bytes, bytes]:
        if message.sender == self.organization:
            return self.secrets.share_for(self.organization)
        sealed = next(each for each in message.body.sealed if each.recipient == self.organization)
        return self.secrets.unseal(message.sender, announced[message.sender], sealed.ciphertext)

    def _completed_before(self) -> list[Completed]:
        return [each for each in self.sessions.completed() if each.session != self.session.digest]

    # --- what was said and shown ---------------------------------------------------------------------------------

    def _answer(
        self, kind: type[SessionMessage], shown: Sequence[SignedMessage], say: Callable[[], Document]
    ) -> SignedMessage:
        """Return the stage's one answer: the kept one, or one that is kept now."""
        stage = stage_of(kind)
        step = self.kept.step(stage)
        if step is None:
            message = kind.model_validate({"session": self.session.digest, "sender": self.organization, "body": say()})
            step = self.kept.keep(stage, Step(shown=tuple(shown), sent=sign(message, self.identity)))
        if roster_digest([m.message for m in step.shown]) != roster_digest([m.message for m in shown]):
            msg = f"other messages were answered in the stage {stage} already; in a session each stage has one answer"
            raise SecureSessionRefusedError(msg, stage=stage)
        return step.sent

    def _said(self, kind: type[M]) -> M:
        """Return this member's own message of a stage; raises SecureSessionRefusedError where there is none."""
        return of_kind(self._step(kind).sent, kind)

    def _shown(self, answer: type[SessionMessage], kind: type[M]) -> list[M]:
        """Return the messages that an answer of this member's answers."""
        return [of_kind(signed, kind) for signed in self._step(answer).shown]

    def _keys(self) -> dict[str, Keys]:
        return {message.sender: message.body for message in self._shown(SharesMessage, KeysMessage)}

    def _step(self, kind: type[SessionMessage]) -> Step:
        stage = stage_of(kind)
        step = self.kept.step(stage)
        if step is None:
            msg = f"{self.organization} has not answered the stage {stage} of this session"
            raise SecureSessionRefusedError(msg, stage=stage)
        return step


def _require_unclaimed(completed: Completed | None, session: SessionManifest) -> None:
    if completed is not None and completed.session != session.digest:
        msg = (
            f"a sum with this contribution, or with these answers, was completed in the session "
            f"{completed.session[:12]}; another would differ from it, so contribute anew"
        )
        raise SecureSessionRefusedError(msg, completed=completed.session)
