"""What an answer is made from, by digest: one that was kept is sent only as long as all of it is the same."""

from pathlib import Path

from gramfuse.answering.configuration import LocalTexts, Participation
from gramfuse.contributing.virtual_files import VirtualFile, digests_of_folder
from gramfuse_shared.contract.requests import RequestInfo
from gramfuse_shared.digest import document_digest
from gramfuse_shared.identifiers import Digest
from gramfuse_shared.version import __version__


def digest_of_sources(request: RequestInfo, participation: Participation) -> Digest:
    """Return a digest of a question and of all that is read here to answer it: texts and the own model, byte by byte.

    The policy stands in the answer itself; the batch size and the device change no answer but in its last digits.

    Raises:
        FileUnreadableError: the texts or the model cannot be read.
    """
    texts, model = participation.texts_for(request.kind), participation.model_for(request)
    return document_digest(
        {
            "gramfuse": __version__,
            "question": request.model_dump(
                mode="json", include={"project", "id", "kind", "models", "layers", "block", "weighting"}
            ),
            "texts": None if texts is None else _of_texts(texts),
            "model": None if model is None else _of_path(model),
            "max_length": participation.max_length,
            "seed": participation.seed,
        }
    )


def _of_texts(texts: LocalTexts) -> dict[str, str | int | None]:
    return texts.model_dump(mode="json", exclude={"texts"}) | {"sha256": _of_path(texts.texts, recursively=True)}


def _of_path(path: Path, *, recursively: bool = False) -> Digest:
    if path.is_dir():
        return document_digest(digests_of_folder(path, recursively=recursively))
    return VirtualFile.of_path(path).digest()
