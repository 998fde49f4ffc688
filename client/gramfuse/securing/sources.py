"""What a member's words are made of: what it contributed as it lies here, or the answer that it announced."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from gramfuse.answering.configuration import Participation
from gramfuse.answering.kept import KeptAnswers
from gramfuse.contributing.loading import weight_file_names
from gramfuse.contributing.packaging import Package
from gramfuse.contributing.plan import FISHER_FILE_NAME, STATISTICS_FILE_NAME
from gramfuse.participation import Client
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.calibration import CalibrationHistograms
from gramfuse_shared.contract.manifest import ContributionManifest
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import ConfigurationError, SecureSessionRefusedError
from gramfuse_shared.merging.decoding import decode_statistics, decode_weights
from gramfuse_shared.merging.reading import MemberReader
from gramfuse_shared.merging.scales import load_scales
from gramfuse_shared.merging.streaming import LocalFile, TensorFile, TensorFiles
from gramfuse_shared.secure.answer_summands import HistogramSummands, StatisticsSummands
from gramfuse_shared.secure.summands import Summands, mean_squares_of
from gramfuse_shared.secure.words import Values


class Source(Protocol):
    """Where one member's numbers for one session come from."""

    @property
    def answer(self) -> Answer | None:
        """The announced answer that is summed; None where a contribution is."""
        ...

    def require_here(self) -> None:
        """Require that the numbers lie here as they were announced; raises SecureSessionRefusedError."""
        ...

    def values(self, folder: Path) -> AbstractContextManager[Values]:
        """Open the numbers; copies of them lie in a private folder meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class Contributed:
    """The weights, and statistics, that were contributed by their manifest."""

    client: Client
    participation: Participation
    session: SessionManifest
    contribution: ContributionManifest
    answer: None = None

    def require_here(self) -> None:
        """Require that model and statistics are what was contributed.

        Raises:
            SecureSessionRefusedError: they were changed since.
            ConfigurationError: the configuration does not name them.
        """
        self._package()

    @contextmanager
    def values(self, folder: Path) -> Iterator[Values]:
        """Open them; raises as above, and ConfigurationError where the base was not pulled."""
        package, contribution = self._package(), self.contribution
        base_folder = self.client.home.base_folder(contribution.base)
        if base_folder is None:
            msg = f"the base model is not here: `gramfuse project base pull {self.session.project} DIR`"
            raise ConfigurationError(msg)
        with ExitStack() as stack:
            copied = Path(stack.enter_context(TemporaryDirectory(dir=folder)))
            for file in package.files:
                with written_whole(copied / file.name) as stream:
                    for chunk in file.chunks():
                        stream.write(chunk)

            def opened(path: Path) -> TensorFile:
                return TensorFile.open(stack.enter_context(LocalFile(path)))

            base = TensorFiles([opened(base_folder / name) for name in weight_file_names(base_folder)])
            weights, measured = contribution.weights, contribution.statistics
            reader = MemberReader(
                decode_weights(opened(copied / weights.file.name), weights.encoding, base, weights.left_out),
                None
                if measured is None
                else decode_statistics(opened(copied / STATISTICS_FILE_NAME), measured.encoding),
                None if contribution.fisher is None else opened(copied / FISHER_FILE_NAME),
            )
            session = self.session
            scales = (
                {}
                if session.scales is None
                else mean_squares_of(session, load_scales(self.client.scales(session.project)))
            )
            taps = {tap.name: tap for tap in (measured.taps if measured else ())}
            yield Summands(session, contribution.organization, reader, base, taps, scales, fisher=contribution.fisher)

    def _package(self) -> Package:
        named, contribution = self.participation, self.contribution
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
            self.session.project,
            model=named.model,
            statistics=None if contribution.statistics is None else named.statistics,
            fisher=None if contribution.fisher is None else named.fisher,
            labels=None if contribution.labels is None else contribution.labels.trained,
        )
        for here, there in zip(package.manifest.files, contribution.files, strict=False):
            if here != there:
                msg = (
                    f"{here.name} of {named.model} is not what was contributed as {self.session.project}'s "
                    f"{contribution.content_digest()[:12]}: it was changed since. Restore it, or contribute anew"
                )
                raise SecureSessionRefusedError(msg, file=here.name)
        return package


@dataclass(frozen=True, slots=True)
class Announced:
    """An answer to a request about a merged model, of which the server has heard what there is and no number."""

    session: SessionManifest
    organization: str
    answer: Answer
    file: Path

    def require_here(self) -> None:
        """Do nothing: it was found here, or there would be no such source."""

    @contextmanager
    def values(self, folder: Path) -> Iterator[Values]:  # noqa: ARG002 - nothing is copied
        """Open the file that was kept."""
        section = self.answer.statistics
        if section is None:
            yield HistogramSummands(CalibrationHistograms.parse(self.file.read_bytes()))
            return
        with LocalFile(self.file) as local:
            yield StatisticsSummands.of(self.session, self.organization, section, TensorFile.open(local))


def source_of(
    client: Client, participation: Participation, session: SessionManifest, contribution: ContributionManifest
) -> Source:
    """Return what a session sums of this member.

    Raises:
        SecureSessionRefusedError: it sums an announced answer that is not kept here.
    """
    request = session.recipe.request
    if request is None:
        return Contributed(client, participation, session, contribution)
    kept = KeptAnswers.of(participation).find(request)
    if kept is None or kept.file is None or not kept.answer.announced:
        msg = (
            f"the answer to {request} that would be summed is not in {participation.folder}, where it is kept until "
            "its sum is over. Have the coordinator ask anew"
        )
        raise SecureSessionRefusedError(msg, request=request)
    return Announced(session, contribution.organization, kept.answer, kept.file)
