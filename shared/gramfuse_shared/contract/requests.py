"""Requests: what the server asks every participant of a cohort, and what an answer may be. Numbers only, never code.

A request names a kind that the client knows. `evaluate` asks for metrics of merged models on held-out data, `gram` for
the Gram matrices of layers as a merged model computes them (RegMean++), `head` and `refit` for what a merged model's
head, or its linear layers, are refit from, `calibration` for histograms of its scores by label. The five stages of a
secure sum are requests, too, each `after` the one before; the first brings the recipe.
"""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.calibration import CalibrationHistograms
from gramfuse_shared.contract.document import Document, Reply
from gramfuse_shared.contract.manifest import FileEntry, PolicyReference, StatisticsSection, Weighting
from gramfuse_shared.contract.metrics import Metrics
from gramfuse_shared.contract.policy import SUMMED_REQUESTS, MergeMethod, Policy, RequestKind
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.refits import (
    require_shared_head,
)
from gramfuse_shared.contract.secure import STAGES, MaskedMessage, SignedMessage, Stage
from gramfuse_shared.contract.withholding import Withheld
from gramfuse_shared.errors import PolicyViolationError
from gramfuse_shared.identifiers import Digest, JobId, OrganizationName, ProjectId, TensorName

RequestState = Literal["open", "complete", "failed", "cancelled"]
AnswerState = Literal["awaited", "open", "sealed", "accepted", "rejected", "expired", "withdrawn"]
"""`awaited`: there is none. The others are those of the upload that carries its files; without files: accepted."""

DAY_SECONDS: Final = 24 * 3600
DEFAULT_SECONDS: Final = 7 * DAY_SECONDS

MeasuredBlock = Literal["merged", "own"]
"""Whose weights a block has while its layers are measured: the merged model's, or the organization's own."""

AskedKind = RequestKind | Stage
"""What is asked about merged models, and the stages of a secure sum."""

EVALUATION_KINDS: Final[frozenset[AskedKind]] = frozenset({"evaluate"})
"""Kinds that may be about several models, and whose answers all members of the project see."""

MERGED_BY: Final[Mapping[AskedKind, MergeMethod]] = MappingProxyType(
    {"gram": "regmean", "head": "head", "refit": "refit", "calibration": "calibration"}
)
"""By which method a model is merged anew with the answers to a request about it."""

OF_LAYERS: Final[frozenset[AskedKind]] = frozenset({"gram", "refit"})


def is_announced(kind: AskedKind, policy: Policy) -> bool:
    """Tell whether an answer says only what there is: its numbers are told by a secure sum, and it tells none."""
    return policy.aggregation == "secure" and kind in SUMMED_REQUESTS


def stage_named(kind: AskedKind) -> Stage | None:
    """Return the stage of a secure sum that a kind is; None where it is none."""
    return next((stage for stage in STAGES if stage == kind), None)


def stage_before(stage: Stage) -> Stage | None:
    """Return the stage whose messages are shown in this one; None of the first."""
    place = STAGES.index(stage)
    return STAGES[place - 1] if place else None


class RequestCreate(Document):
    """Asks every organization of the models' cohorts; a stage of a secure sum those that are in it still.

    Attributes:
        kind: what is asked for.
        models: merged models of the project; one, except for `evaluate`; of a stage none.
        layers: of `gram`, the linear weights whose inputs are measured, of `refit` those that are refit; none: all.
        block: of `gram`, `own` puts the blocks that hold these layers in the merged model as the organization has them,
            every parameter of them, and measures there: the inputs of a block are the merged model's, what its inner
            layers read is the organization's own work (RegMean++ as published).
        weighting: of `gram`, what a row of the matrices counts by.
        recipe: of `keys`, what is summed of whom.
        after: of the stages behind it, the request of the stage before.
        seconds: until the deadline.
    """

    kind: AskedKind
    models: Annotated[tuple[JobId, ...], Field(max_length=limits.MAX_REQUEST_MODELS)] = ()
    layers: Annotated[tuple[TensorName, ...], Field(max_length=limits.MAX_TAPS)] = ()
    block: MeasuredBlock = Field(default="merged", exclude_if=lambda value: value == "merged")
    weighting: Weighting = Field(default="none", exclude_if=lambda value: value == "none")
    recipe: Recipe | None = Field(default=None, exclude_if=lambda value: value is None)
    after: JobId | None = Field(default=None, exclude_if=lambda value: value is None)
    seconds: Annotated[int, Field(ge=60, le=365 * DAY_SECONDS)] = DEFAULT_SECONDS

    @model_validator(mode="after")
    def _a_stage_has_a_recipe_or_one_before(self) -> Self:
        is_stage = self.kind in STAGES
        wanted = (self.kind == "keys", is_stage and self.kind != "keys")
        if (self.recipe is not None, self.after is not None) != wanted:
            msg = "a request of the kind keys has a recipe, the stages behind it say after which request, no other does"
            raise ValueError(msg)
        if bool(self.models) == is_stage:
            msg = "a stage of a secure sum names no models" if self.models else "a request names the models it is about"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if len(set(self.models)) != len(self.models):
            msg = "a model is named twice"
            raise ValueError(msg)
        if len(self.models) > 1 and self.kind not in EVALUATION_KINDS:
            msg = f"a request of the kind {self.kind} is about one model"
            raise ValueError(msg)
        if self.layers and self.kind not in OF_LAYERS:
            msg = f"a request of the kind {self.kind} names no layers"
            raise ValueError(msg)
        if self.weighting != "none" and self.kind != "gram":
            msg = f"a request of the kind {self.kind} weights nothing"
            raise ValueError(msg)
        if self.block == "own" and self.kind != "gram":
            msg = f"a request of the kind {self.kind} is about no blocks of one's own"
            raise ValueError(msg)
        if self.block == "own" and not self.layers:
            msg = "block: own names the layers; with all blocks its own, the model would be the organization's alone"
            raise ValueError(msg)
        return self


class ModelScore(Document):
    """How good a model is on an organization's held-out examples; `model` is None for the organization's own."""

    model: JobId | None
    examples: Annotated[int, Field(ge=1, le=limits.MAX_ROWS)]
    metrics: Metrics


class Answer(Document):
    """One organization's answer. It holds no clock and no chance, so the same answer has the same bytes.

    Where the policy sums in secret, an answer to `head` or `calibration` is `announced`: it says what there is, and no
    numbers of it, which only a sum over all members tells. Its statistics' file does not travel, its histograms are of
    no class.

    `scores` answer `evaluate`, `statistics` (a file beside this document) `gram`, `head` and `refit`, each of its own
    kind, or `withheld` alone `gram` and `refit`: nothing of these layers may leave, for these reasons. `histograms`
    answer `calibration`, and a signed `message` a stage of a secure sum; masked words are a file beside it.
    """

    format: Literal["gramfuse/answer/1"] = "gramfuse/answer/1"
    project: ProjectId
    request: JobId
    organization: OrganizationName
    policy: PolicyReference
    scores: Annotated[tuple[ModelScore, ...], Field(max_length=limits.MAX_REQUEST_MODELS + 1)] = Field(
        default=(), exclude_if=lambda value: not value
    )
    statistics: StatisticsSection | None = Field(default=None, exclude_if=lambda value: value is None)
    withheld: Withheld = Field(default=(), exclude_if=lambda value: not value)
    histograms: CalibrationHistograms | None = Field(default=None, exclude_if=lambda value: value is None)
    message: SignedMessage | None = Field(default=None, exclude_if=lambda value: value is None)
    announced: bool = Field(default=False, exclude_if=lambda value: value is False)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files that travel beside the document."""
        if self.message is not None and isinstance(self.message.message, MaskedMessage):
            return (self.message.message.body.words,)
        return () if self.statistics is None or self.announced else (self.statistics.file,)


class Asked(Document):
    """An organization that a request asks, and how far its answer is; `scores` are its evaluation's.

    `withheld` says why nothing of the layers that are asked for may leave it.
    """

    organization: OrganizationName
    state: AnswerState
    reason: str | None = None
    scores: tuple[ModelScore, ...] = ()
    withheld: Withheld = Field(default=(), exclude_if=lambda value: not value)


class RequestInfo(Reply):
    """A request as the project's members see it.

    `complete` once everybody answered, or at the deadline where the policy leaves out who missed it. `session` is the
    digest of the manifest of a secure sum, of which a stage is asked.
    """

    id: JobId
    project: ProjectId
    kind: AskedKind
    models: tuple[JobId, ...] = ()
    layers: tuple[TensorName, ...] = ()
    block: MeasuredBlock = Field(default="merged", exclude_if=lambda value: value == "merged")
    weighting: Weighting = Field(default="none", exclude_if=lambda value: value == "none")
    after: JobId | None = Field(default=None, exclude_if=lambda value: value is None)
    session: Digest | None = Field(default=None, exclude_if=lambda value: value is None)
    state: RequestState
    reason: str | None = None
    policy: PolicyReference
    created_at: datetime
    deadline: datetime
    asked: tuple[Asked, ...]


def requests_in_vain(policy: Policy) -> dict[RequestKind, str]:
    """Return the requests that a policy names and that are refused under it all the same, each with the reason."""
    found = {}
    for kind in policy.requests:
        try:
            require_request_allowed(kind, policy)
        except PolicyViolationError as error:
            found[kind] = error.message
    return found


def require_request_allowed(kind: AskedKind, policy: Policy) -> None:
    """Require that the policy lets participants be asked this, and what is made of the answers.

    Raises:
        PolicyViolationError: it does not.
    """
    if stage_named(kind) is not None:
        if policy.aggregation != "secure":
            msg = f"the policy says aggregation: {policy.aggregation}, so nothing is summed in secret; submit a job"
            raise PolicyViolationError(msg, kind=kind)
        return
    if kind not in policy.requests:
        allowed = ", ".join(policy.requests) or "no requests"
        msg = f"the policy allows {allowed}, not {kind} (requests); have the coordinator publish another policy"
        raise PolicyViolationError(msg, kind=kind)
    method = MERGED_BY.get(kind)
    if method is not None and method not in policy.methods:
        msg = (
            f"the policy lets {kind} be asked (requests), but nothing be merged by {method} with the answers "
            "(methods); have the coordinator publish another policy"
        )
        raise PolicyViolationError(msg, kind=kind, method=method)
    require_shared_head(kind, policy)
