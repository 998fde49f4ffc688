"""Answers the stages of secure sums: checks the session, and lets the participant speak of what is summed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gramfuse.answering.configuration import Participation
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.identity import load_identity
from gramfuse.participation import Client
from gramfuse.securing.kept import Completed, KeptSession, KeptSessions
from gramfuse.securing.participant import Participant, WriteWords
from gramfuse.securing.rules import require_session
from gramfuse.securing.sources import Source, source_of
from gramfuse.securing.words import words_of
from gramfuse.trust import Trust
from gramfuse_shared.contract.manifest import ContributionManifest, FileEntry, PolicyReference
from gramfuse_shared.contract.requests import Answer, RequestInfo, stage_named
from gramfuse_shared.contract.secure import MaskedMessage, SignedMessage, Stage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import ConfigurationError, SecureSessionRefusedError
from gramfuse_shared.secure.masks import Mask

_FOLDER: Final = "sessions"


@dataclass(frozen=True, slots=True)
class Stages:
    """One organization's side of a project's secure sums."""

    client: Client
    participation: Participation

    def answer(self, request: RequestInfo) -> PreparedAnswer:
        """Prepare the answer to a stage: the same one at each call.

        Raises:
            SecureSessionRefusedError, SignatureInvalidError: the session, or what is shown of it, is not to be trusted.
            ConfigurationError: the configuration does not name what was contributed, or the base was not pulled.
            ValueOutOfBoundsError: a value may not be summed.
            GramfuseError: what is read.
        """
        stage = stage_named(request.kind)
        if stage is None:
            msg = f"request {request.id} is no stage of a secure sum"
            raise ConfigurationError(msg)
        session = self.client.session(request.project, request.id)
        if session.digest != request.session:
            msg = f"the manifest of {request.id} is not the one whose digest the request names"
            raise SecureSessionRefusedError(msg)
        contribution = self._contribution(session)
        policy = self.client.policy(request.project)
        project = self.client.project(request.project)
        sessions = kept_sessions(self.client, request.project)
        identity = load_identity(self.client.home)
        pinned = {**Trust.of(self.client.home, self.client.url, project.id).known.identities}
        pinned[self.client.organization] = identity.public
        source = source_of(self.client, self.participation, session, contribution)
        require_session(
            session,
            self.client.organization,
            contribution,
            policy.policy,
            pinned,
            _others(sessions, session),
            answer=source.answer,
        )
        participant = Participant.join(session, self.client.organization, identity.key, sessions, policy.policy)
        shown = () if stage == "keys" else self.client.stage_messages(request.project, request.id)
        signed = _speak(participant, stage, shown, source)
        words = signed.message.body.words if isinstance(signed.message, MaskedMessage) else None
        answer = Answer(
            project=project.id,
            request=request.id,
            organization=self.client.organization,
            policy=PolicyReference(version=policy.version, digest=policy.digest),
            message=signed,
        )
        file = None if words is None else participant.kept.words(words.sha256)
        return PreparedAnswer(answer, file, asked=request, session=session)

    def _contribution(self, session: SessionManifest) -> ContributionManifest:
        member = session.member(self.client.organization)
        found = None if member is None else self.client.contribution(session.project, member.contribution)
        if found is None or found.manifest is None:
            msg = f"the session {session.session} sums no contribution of {self.client.organization}"
            raise SecureSessionRefusedError(msg)
        if not found.counts:
            msg = (
                f"the contribution {found.id[:12]} was withdrawn or replaced since {session.session} began, so "
                f"{self.client.organization} says nothing more in that session"
            )
            raise SecureSessionRefusedError(msg)
        return found.manifest


def _speak(participant: Participant, stage: Stage, shown: Sequence[SignedMessage], source: Source) -> SignedMessage:
    match stage:
        case "keys":
            source.require_here()  # who could not send words later had better not begin
            return participant.keys()
        case "shares":
            return participant.shares(shown)
        case "masked":
            return participant.masked(shown, _write_words(participant.session, source))
        case "survivors":
            return participant.survivors(shown)
        case "unmask":
            return participant.unmask(shown)


def _write_words(session: SessionManifest, source: Source) -> WriteWords:
    def write(kept: KeptSession, masks: Sequence[Mask]) -> FileEntry:
        with source.values(kept.folder) as values:
            return words_of(session, values)(kept, masks)

    return write


def kept_sessions(client: Client, project: str) -> KeptSessions:
    """Return where a project's sessions are kept in a client's home."""
    name = sha256_hex(f"{client.url} {project}".encode())[:24]
    return KeptSessions(client.home.folder(_FOLDER) / name)


def _others(sessions: KeptSessions, session: SessionManifest) -> list[Completed]:
    return [completed for completed in sessions.completed() if completed.session != session.digest]
