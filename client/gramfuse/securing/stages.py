"""Answers the stages of secure sums from what was contributed: checks the session, and lets the participant speak."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from gramfuse.answering.configuration import Participation
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.contributing.loading import weight_file_names
from gramfuse.contributing.packaging import Package
from gramfuse.contributing.plan import FISHER_FILE_NAME, STATISTICS_FILE_NAME
from gramfuse.identity import load_identity
from gramfuse.participation import Client
from gramfuse.securing.kept import Completed, KeptSession, KeptSessions
from gramfuse.securing.participant import Participant, WriteWords
from gramfuse.securing.rules import require_session
from gramfuse.securing.words import words_of
from gramfuse.trust import Trust
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.manifest import ContributionManifest, FileEntry, PolicyReference
from gramfuse_shared.contract.requests import Answer, RequestInfo, stage_named
from gramfuse_shared.contract.secure import MaskedMessage, SignedMessage, Stage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import ConfigurationError, SecureSessionRefusedError
from gramfuse_shared.merging.decoding import decode_statistics, decode_weights
from gramfuse_shared.merging.reading import MemberReader
from gramfuse_shared.merging.scales import load_scales
from gramfuse_shared.merging.streaming import LocalFile, TensorFile, TensorFiles
from gramfuse_shared.secure.masks import Mask
from gramfuse_shared.secure.summands import Summands, mean_squares_of

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
        require_session(
            session, self.client.organization, contribution, policy.policy, pinned, _others(sessions, session)
        )
        participant = Participant.join(session, self.client.organization, identity.key, sessions, policy.policy)
        shown = () if stage == "keys" else self.client.stage_messages(request.project, request.id)
        signed = self._speak(participant, stage, shown, contribution)
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

    def _speak(
        self,
        participant: Participant,
        stage: Stage,
        shown: Sequence[SignedMessage],
        contribution: ContributionManifest,
    ) -> SignedMessage:
        match stage:
            case "keys":
                self._package(participant.session, contribution)  # who could not send words later had better not begin
                return participant.keys()
            case "shares":
                return participant.shares(shown)
            case "masked":
                return participant.masked(shown, self._write_words(participant, contribution))
            case "survivors":
                return participant.survivors(shown)
            case "unmask":
                return participant.unmask(shown)

    def _contribution(self, session: SessionManifest) -> ContributionManifest:
        member = session.member(self.client.organization)
        found = None
        if member is not None:
            found = self.client.contribution(session.project, member.contribution).manifest
        if found is None:
            msg = f"the session {session.session} sums no contribution of {self.client.organization}"
            raise SecureSessionRefusedError(msg)
        return found

    def _package(self, session: SessionManifest, contribution: ContributionManifest) -> Package:
        """Return what was contributed as it lies here; raises SecureSessionRefusedError where it is not the same."""
        named = self.participation
        if named.model is None:
            msg = "the configuration names no model, whose weights would be summed (model)"
            raise ConfigurationError(msg)
        for section, path, key in (
            (contribution.statistics, named.statistics, "statistics"),
            (contribution.fisher, named.fisher, "fisher"),
        ):
            if section is not None and path is None:
                msg = f"the contribution has {key}, and the configuration does not name their file ({key})"
                raise ConfigurationError(msg)
        package = self.client.package(
            session.project,
            model=named.model,
            statistics=None if contribution.statistics is None else named.statistics,
            fisher=None if contribution.fisher is None else named.fisher,
            labels=None if contribution.labels is None else contribution.labels.trained,
        )
        for here, there in zip(package.manifest.files, contribution.files, strict=False):
            if here != there:
                msg = (
                    f"{here.name} of {named.model} is not what was contributed as {session.project}'s "
                    f"{contribution.content_digest()[:12]}: it was changed since. Restore it, or contribute anew"
                )
                raise SecureSessionRefusedError(msg, file=here.name)
        return package

    def _write_words(self, participant: Participant, contribution: ContributionManifest) -> WriteWords:
        """Return what writes the words: what was contributed lies in a private folder while it is read."""

        def write(kept: KeptSession, masks: Sequence[Mask]) -> FileEntry:
            with self._summands(participant, contribution) as summands:
                return words_of(participant.session, summands)(kept, masks)

        return write

    @contextmanager
    def _summands(self, participant: Participant, contribution: ContributionManifest) -> Iterator[Summands]:
        session = participant.session
        package = self._package(session, contribution)
        base_folder = self.client.home.base_folder(contribution.base)
        if base_folder is None:
            msg = f"the base model is not here: `gramfuse project base pull {session.project} DIR`"
            raise ConfigurationError(msg)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(dir=participant.kept.folder)))
            for file in package.files:
                with written_whole(folder / file.name) as stream:
                    for chunk in file.chunks():
                        stream.write(chunk)

            def opened(path: Path) -> TensorFile:
                return TensorFile.open(stack.enter_context(LocalFile(path)))

            base = TensorFiles([opened(base_folder / name) for name in weight_file_names(base_folder)])
            weights, measured = contribution.weights, contribution.statistics
            reader = MemberReader(
                decode_weights(opened(folder / weights.file.name), weights.encoding, base, weights.left_out),
                None
                if measured is None
                else decode_statistics(opened(folder / STATISTICS_FILE_NAME), measured.encoding),
                None if contribution.fisher is None else opened(folder / FISHER_FILE_NAME),
            )
            scales = (
                {}
                if session.scales is None
                else mean_squares_of(session, load_scales(self.client.scales(session.project)))
            )
            taps = {tap.name: tap for tap in (measured.taps if measured else ())}
            yield Summands(session, self.client.organization, reader, base, taps, scales, fisher=contribution.fisher)


def kept_sessions(client: Client, project: str) -> KeptSessions:
    """Return where a project's sessions are kept in a client's home."""
    name = sha256_hex(f"{client.url} {project}".encode())[:24]
    return KeptSessions(client.home.folder(_FOLDER) / name)


def _others(sessions: KeptSessions, session: SessionManifest) -> list[Completed]:
    return [completed for completed in sessions.completed() if completed.session != session.digest]
