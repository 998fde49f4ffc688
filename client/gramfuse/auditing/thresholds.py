"""From where on a finding warns, and from where on it refuses: a file of numbers, each with its reason here."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from gramfuse.contributing.loading import read_document
from gramfuse_shared.contract.document import Document, describe_validation
from gramfuse_shared.errors import ConfigurationError

Verdict = Literal["pass", "warn", "refuse"]


class Above(Document):
    """Values above these warn, or refuse; null never does."""

    warn: Annotated[float, Field(ge=0, le=1)] | None = None
    refuse: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _warns_first(self) -> Self:
        if self.warn is not None and self.refuse is not None and self.warn > self.refuse:
            msg = "warn is above refuse, so nothing would ever warn"
            raise ValueError(msg)
        return self

    def judge(self, value: float) -> Verdict:
        """Return what a value comes to."""
        if self.refuse is not None and value > self.refuse:
            return "refuse"
        return "warn" if self.warn is not None and value > self.warn else "pass"

    def limit(self, verdict: Verdict) -> float | None:
        """The number that was passed."""
        return self.refuse if verdict == "refuse" else self.warn


class Below(Document):
    """Values below these warn, or refuse; null never does."""

    warn: Annotated[float, Field(ge=0)] | None = None
    refuse: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _warns_first(self) -> Self:
        if self.warn is not None and self.refuse is not None and self.warn < self.refuse:
            msg = "warn is below refuse, so nothing would ever warn"
            raise ValueError(msg)
        return self

    def judge(self, value: float) -> Verdict:
        """Return what a value comes to."""
        if self.refuse is not None and value < self.refuse:
            return "refuse"
        return "warn" if self.warn is not None and value < self.warn else "pass"

    def limit(self, verdict: Verdict) -> float | None:
        """The number that was passed."""
        return self.refuse if verdict == "refuse" else self.warn


class Thresholds(Document):
    """What is judged of that which would leave. What stays at home is reported, and never judged.

    Attributes:
        rows_per_dimension: fewer distinct rows than features give rows back exactly, so less than one refuses; below
            200 the policy's own check warns, too.
        membership_auc: .95 tells nearly every text, so it refuses. At the policy's usual minimum of 20 rows per
            dimension .86 was measured, which the policy's members accepted, so it warns.
        lone_texts: the share of texts with a row that carries a direction by itself: it can be read off the matrix.
        token_auc: taps that embeddings feed leave only where everybody accepted a policy that says so: it warns.
        tokens_explained: the same without the texts at hand; from half of the matrix on the fit has found the tokens.
        vocabulary_auc: embeddings, too, leave only where the policy says so: it warns.
    """

    rows_per_dimension: Below = Below(warn=200, refuse=1)
    membership_auc: Above = Above(warn=0.6, refuse=0.95)
    lone_texts: Above = Above(warn=0.01)
    token_auc: Above = Above(warn=0.6)
    tokens_explained: Above = Above(warn=0.5)
    vocabulary_auc: Above = Above(warn=0.6)

    def refusing_above(self, auc: float) -> Self:
        """Return thresholds that refuse every attack whose AUC is above this."""
        names = ("membership_auc", "token_auc", "vocabulary_auc")
        kept: dict[str, float | None] = {name: getattr(self, name).warn for name in names}
        changed = {
            name: Above(warn=None if warn is None else min(warn, auc), refuse=auc) for name, warn in kept.items()
        }
        return self.model_copy(update=changed)


class Finding(Document):
    """Something that would leave and passes a threshold."""

    verdict: Literal["warn", "refuse"]
    threshold: str
    on: str
    value: float
    limit: float
    told: str


def read_thresholds(path: Path) -> Thresholds:
    """Read thresholds from YAML or JSON; those that it does not name keep their defaults.

    Raises:
        ConfigurationError: it does not follow the schema; the message names the places.
        FileUnreadableError, TooLargeError: the file.
    """
    try:
        return Thresholds.model_validate(yaml.safe_load(read_document(path)) or {})
    except (yaml.YAMLError, RecursionError) as error:
        msg = f"{path} is not YAML: {error}"
        raise ConfigurationError(msg) from error
    except ValidationError as error:
        raise ConfigurationError(describe_validation(str(path), error.errors(), Thresholds)) from error
