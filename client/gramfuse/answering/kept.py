"""Answers on the disk until the server has accepted them, so that a retry after a crash sends the same bytes."""

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from gramfuse.answering.configuration import Participation
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.contributing.plan import STATISTICS_FILE_NAME
from gramfuse.transfer.downloads import PARTIAL_SUFFIX
from gramfuse.whole_files import private_folder, written_whole
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.errors import DocumentMalformedError
from gramfuse_shared.identifiers import Digest

_ANSWER: Final = "answer.json"
HISTOGRAMS_FILE_NAME: Final = "histograms.json"
"""The counts of an announced answer to `calibration`; they do not travel."""

_STAYS: Final = "stays.json"
_MADE_FROM: Final = "made-from.sha256"
_MODELS: Final = "models"


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """A folder with a folder for every request that is being answered, readable by its owner only.

    Each project has its own: models and requests of two may have the same names.
    """

    folder: Path

    @classmethod
    def of(cls, participation: Participation) -> Self:
        """Return where a participation's project keeps its answers."""
        return cls(participation.folder / participation.project)

    def place(self, request: str) -> Path:
        """Return the folder of a request, which is made if needed; raises FileUnwritableError."""
        return private_folder(private_folder(self.folder) / request)

    def model(self, model: str) -> Path:
        """Return where a pulled model lies, or will."""
        self.place(_MODELS)
        return self.folder / _MODELS / model

    def models(self) -> list[Path]:
        """List the folders of pulled models, the newest first."""
        return sorted(
            (folder for folder in self._folders() if folder.suffix != PARTIAL_SUFFIX),
            key=lambda folder: folder.stat().st_mtime_ns,
            reverse=True,
        )

    def forget_models(self, needed: Collection[str]) -> None:
        """Remove the pulled models that no request waits for: a loop asks about one after the other.

        The newest stays, since the next one often has most of its files in common with it.
        """
        kept = {*needed, *(folder.name for folder in self.models()[:1])}
        for folder in self._folders():
            if folder.name.removesuffix(PARTIAL_SUFFIX) not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        try:
            return list((self.folder / _MODELS).iterdir())
        except OSError:
            return []

    def keep(self, prepared: PreparedAnswer, made_from: Digest) -> None:
        """Keep an answer; its file is in the request's folder already. The document comes last: with it, all is there.

        `made_from` is the digest of what it was made from.

        Raises:
            FileUnwritableError: the folder cannot be written.
        """
        place = self.place(prepared.answer.request)
        with written_whole(place / _STAYS) as stream:
            stream.write(json.dumps(prepared.stays).encode())
        with written_whole(place / _MADE_FROM) as stream:
            stream.write(made_from.encode())
        with written_whole(place / _ANSWER) as stream:
            stream.write(prepared.answer.canonical())

    def find(self, request: str) -> PreparedAnswer | None:
        """Return the answer that was kept; None where there is none, or a damaged one."""
        place = self.folder / request
        try:
            answer = Answer.parse((place / _ANSWER).read_bytes())
            stays = tuple((str(name), str(reason)) for name, reason in json.loads((place / _STAYS).read_bytes()))
        except (OSError, ValueError, DocumentMalformedError):
            return None
        name = _file_of(answer)
        if name is not None and not (place / name).is_file():
            return None
        return PreparedAnswer(answer, None if name is None else place / name, stays)

    def is_made_from(self, request: str, digest: Digest) -> bool:
        """Tell whether the answer that is kept was made from what has this digest; of an older one nobody knows."""
        try:
            return (self.folder / request / _MADE_FROM).read_text(encoding="ascii") == digest
        except (OSError, UnicodeDecodeError):
            return False

    def announced(self) -> list[str]:
        """List the requests to which an announced answer is kept, until its sum is over."""
        found = [place.parent.name for place in self.folder.glob(f"*/{_ANSWER}")]
        kept = {request: self.find(request) for request in sorted(found)}
        return [request for request, prepared in kept.items() if prepared is not None and prepared.answer.announced]

    def forget(self, request: str) -> None:
        """Remove what was kept for a request."""
        shutil.rmtree(self.folder / request, ignore_errors=True)


def _file_of(answer: Answer) -> str | None:
    if answer.statistics is not None:
        return STATISTICS_FILE_NAME
    return HISTOGRAMS_FILE_NAME if answer.announced else None
