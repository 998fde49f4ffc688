"""The configuration of `gramfuse participate`: which project, which local data, and what is answered without asking."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from gramfuse.contributing.loading import read_document
from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document, describe_validation
from gramfuse_shared.contract.policy import RequestKind
from gramfuse_shared.contract.requests import AskedKind, RequestInfo, stage_named
from gramfuse_shared.errors import ConfigurationError

DEFAULT_FOLDER: Final = Path("answers")

_KINDS_OF_MODELS: Final[frozenset[AskedKind]] = frozenset({"head", "refit"})
"""Those that cannot be answered without the organization's own model."""

_TEXTS_OF_KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {"evaluate": "held_out", "gram": "measured", "head": "measured", "refit": "measured"}
    | {"calibration": "calibrated (or held_out)"}
)
"""The key of the configuration that names the texts of a kind, as people are told it."""


class LocalTexts(Document):
    """Texts on this machine, and which fields of a record hold what; by default those with the usual names."""

    texts: Path
    text_field: str | None = None
    pair_field: str | None = None
    tokens: str | None = None
    label_field: str | None = None
    tags: str | None = None
    split: str | None = None
    examples: Annotated[int, Field(ge=1)] | None = None


class Participation(Document):
    """What an organization lets `gramfuse participate` do.

    Attributes:
        project: the project whose requests are answered.
        model: the organization's own fine-tuned folder, as it was contributed; an evaluation scores it, too, a `gram`
            request about own blocks takes these from it, a `head` request its logits, a `refit` request what its layers
            give, and a secure sum its weights.
        statistics: the statistics file that was contributed, for secure sums.
        fisher: the file of Fisher information that was contributed, for secure sums.
        held_out: labelled texts that nothing was trained on, for `evaluate`.
        measured: the texts that statistics are measured on, for `gram`, `head` and `refit`.
        calibrated: labelled texts whose scores are counted, for `calibration`; default: `held_out`. On texts that a
            model was calibrated on it scores a little too well: name others than `held_out` to evaluate afterwards.
        allow: kinds that are answered without showing each answer first; `sum` lets secure sums be joined. What leaves
            is noted all the same.
        folder: where pulled models and answers are kept, so that a retry sends the same bytes.
        batch_size: texts per forward pass.
        max_length: tokens per text; default: what the model takes, at most 512.
        device: auto, cpu, cuda, …
        seed: of the labels that a weighted `gram` request has drawn; default: one that nobody can guess. One that is
            named repeats an answer, also for whoever guesses it.
    """

    project: str
    model: Path | None = None
    statistics: Path | None = None
    fisher: Path | None = None
    held_out: LocalTexts | None = None
    measured: LocalTexts | None = None
    calibrated: LocalTexts | None = None
    allow: tuple[RequestKind | Literal["sum"], ...] = ()
    folder: Path = DEFAULT_FOLDER
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    max_length: Annotated[int, Field(ge=1)] | None = None
    device: str = "auto"
    seed: Annotated[int, Field(ge=0, le=limits.MAX_SEED)] | None = None

    @property
    def kinds(self) -> frozenset[RequestKind]:
        """The kinds of questions about merged models that there is local data for."""
        return frozenset(
            kind
            for kind in get_args(RequestKind)
            if self.texts_for(kind) is not None and (self.model is not None or kind not in _KINDS_OF_MODELS)
        )

    def texts_for(self, kind: AskedKind) -> LocalTexts | None:
        """Return the texts that requests of a kind are answered from; None where there are none."""
        return {
            "evaluate": self.held_out,
            "gram": self.measured,
            "head": self.measured,
            "refit": self.measured,
            "calibration": self.calibrated or self.held_out,
        }.get(kind)

    def model_for(self, request: RequestInfo) -> Path | None:
        """Return the organization's own model, if an answer to the request would hang on it."""
        uses_model = request.kind in {"evaluate", *_KINDS_OF_MODELS} or request.block == "own"
        return self.model if uses_model else None

    def can_answer(self, request: RequestInfo) -> bool:
        """Tell whether there is all that a request would be answered from."""
        if stage_named(request.kind) is not None:
            return self.model is not None
        return request.kind in self.kinds and (request.block == "merged" or self.model is not None)

    def lacking(self, request: RequestInfo) -> str:
        """Name the keys without which a request cannot be answered; empty if there is all."""
        if self.can_answer(request):
            return ""
        texts = _TEXTS_OF_KINDS.get(request.kind, "") if self.texts_for(request.kind) is None else ""
        uses_model = stage_named(request.kind) is not None or request.kind in _KINDS_OF_MODELS or request.block == "own"
        model = "model" if uses_model and self.model is None else ""
        return " and ".join(filter(None, (texts, model)))

    def allows(self, request: RequestInfo) -> bool:
        """Tell whether a request is answered without asking; of a secure sum whoever joined goes on."""
        stage = stage_named(request.kind)
        return request.kind in self.allow if stage is None else "sum" in self.allow or stage != "keys"


def read_participation(path: Path) -> Participation:
    """Read a configuration from YAML or JSON; its relative paths start from its own folder.

    Raises:
        ConfigurationError: it does not follow the schema; the message names the places.
        FileUnreadableError, TooLargeError: the file.
    """
    try:
        document = yaml.safe_load(read_document(path, most_bytes=limits.MAX_REQUEST_BYTES))
        parsed = Participation.model_validate(document)
    except (yaml.YAMLError, RecursionError) as error:
        msg = f"{path} is not YAML: {error}"
        raise ConfigurationError(msg) from error
    except ValidationError as error:
        raise ConfigurationError(describe_validation(str(path), error.errors(), Participation)) from error
    return _resolved(parsed, path.parent)


def _resolved(parsed: Participation, start: Path) -> Participation:
    def texts(found: LocalTexts | None) -> LocalTexts | None:
        return None if found is None else found.model_copy(update={"texts": start / found.texts})

    return parsed.model_copy(
        update={
            **{name: start / path for name in ("model", "statistics", "fisher") if (path := getattr(parsed, name))},
            "held_out": texts(parsed.held_out),
            "measured": texts(parsed.measured),
            "calibrated": texts(parsed.calibrated),
            "folder": start / parsed.folder,
        }
    )
