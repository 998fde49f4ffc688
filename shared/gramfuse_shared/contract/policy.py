"""What a project allows to leave an organization and to be merged. Both sides enforce it, the client first."""

import fnmatch
import math
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.privacy import PrivacyBudget
from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.identifiers import Digest

Pattern = Annotated[str, Field(min_length=1, max_length=256)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=limits.MAX_PATTERNS)]
MergeMethod = Literal[
    "linear",
    "regmean",
    "fisher",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "wudi",
    "head",
    "refit",
    "calibration",
]
MissingStatistics = Literal["average", "estimate"]
TensorRole = Literal["embedding", "head", "body"]
RequestKind = Literal["evaluate", "gram", "head", "refit", "calibration"]
Aggregation = Literal["plain", "secure"]
AuditSharing = Literal["private", "shared"]

DEFAULT_EVALUATION_EXAMPLES: Final = 100

DEFAULT_EMBEDDING_PARAMETERS: Final = (
    "*word_embeddings*",
    "*position_embeddings*",
    "*token_type_embeddings*",
    "*patch_embeddings*",
    "*cls_token",
    "*embed_tokens*",
    "*embed_positions*",
    "*rel_embeddings*",
    "*wte.weight",
    "*wpe.weight",
    "shared.weight",
    "lm_head.*",
)
DEFAULT_HEAD_PARAMETERS: Final = (
    "classifier.*",
    "pre_classifier.*",
    "classification_head.*",
    "score.*",
    "qa_outputs.*",
    "pooler.*",
    "head.*",
    "cls.*",
)


_METHODS_WITH_NOISE: Final = frozenset(
    {"linear", "regmean", "task_arithmetic", "ties", "dare_linear", "dare_ties", "wudi"}
)
_REQUESTS_WITH_NOISE: Final = frozenset({"evaluate"})
"""What differential privacy goes with: whatever else there is, and comes, asks for statistics that nothing noises."""

SUMMED_METHODS: Final[frozenset[MergeMethod]] = frozenset({"linear", "regmean", "fisher", "head", "calibration"})
SUMMED_REQUESTS: Final[frozenset[RequestKind]] = frozenset({"head", "calibration"})
_SECURE_REQUESTS: Final = SUMMED_REQUESTS | {"evaluate"}
"""What secure sums go with: methods that need sums alone, as those of delta kind do not, and questions whose answers
are no statistics, or summed."""

MINIMUM_SUMMED: Final = 3
"""A sum of two is each one's own, to the other."""


class Policy(Document):
    """The rules of one project; every participant accepts a version of it by its digest.

    The defaults are the safe settings. Whoever writes an unsafe one makes every participant accept it explicitly.
    Fields that came later are written only where they are not the default, so that older policies keep their digests.
    """

    format: Literal["gramfuse/policy/1"] = "gramfuse/policy/1"
    aggregation: Aggregation = Field(
        default="plain",
        description="plain: the server sees each organization's weights and statistics. secure: it sees sums over all "
        "members, and of each alone names, shapes, sizes, row counts and when it answers. What the sum itself tells is "
        "not hidden, nor is a member from all others together. Allows what sums are enough for: linear, regmean (which "
        "needs scales), fisher, head and calibration, and requests of the kinds evaluate, head and calibration",
    )
    methods: tuple[MergeMethod, ...] = Field(
        default=("linear", "regmean"), min_length=1, description="the merge methods that a job's recipe may name"
    )
    embeddings: Literal["base", "average"] = Field(
        default="base",
        description="base: embeddings, and output weights tied to or shaped like them, are the base model's and none "
        "leave. average: they leave and reveal which tokens the private text holds",
    )
    embedding_parameters: Patterns = Field(
        default=DEFAULT_EMBEDDING_PARAMETERS, description="which parameters are embeddings, by patterns on whole names"
    )
    embedding_taps: Literal["withhold", "send"] = Field(
        default="withhold",
        description="withhold: statistics of taps that embeddings feed directly stay at home, their linears are "
        "averaged. send: they leave and reveal the private text's token counts",
    )
    heads: Literal["private", "shared"] = Field(
        default="private", description="private: task heads stay at home, the merged model has the base's"
    )
    head_parameters: Patterns = Field(
        default=DEFAULT_HEAD_PARAMETERS,
        description="which parameters are task heads, by patterns on whole names. A pooler within the encoder, as "
        "bert.pooler.*, is none by default: the base model was trained with it, and it is merged. One beside the "
        "encoder, as pooler.* of DeBERTa's classifiers, is new with the task and counts as head. `*pooler*` keeps all",
    )
    minimum_rows_per_dimension: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=20.0,
        description="a tap with fewer distinct rows than this times its width is not sent; for Fisher information "
        "examples count as rows, and the harmonic mean of its sides as the width of the largest matrix",
    )
    advised_rows_per_dimension: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=200.0, description="a tap with fewer distinct rows than this times its width is warned about"
    )
    given_labels: Literal["withhold", "send"] = Field(
        default="withhold",
        exclude_if=lambda value: value == "withhold",
        description="withhold: Fisher information that was measured with the texts' own labels stays at home. send: it "
        "leaves, where fisher is among the methods, and tells how the model does on these texts",
    )
    audit: AuditSharing = Field(
        default="private",
        exclude_if=lambda value: value == "private",
        description="private: the report of the audit that each organization makes of its own contribution stays at "
        "home, and so does its verdict. shared: each contribution says in words, to the project's members and the "
        "server's operators, how its audit came out: which kinds of attack were run, with or without the texts, and "
        "what warned; no number. It is the organization's own word, which nobody can check",
    )
    missing_statistics: MissingStatistics = Field(
        default="average",
        exclude_if=lambda value: value == "average",
        description="average: a linear layer of which a contribution lacks statistics is averaged. estimate: a recipe "
        "may take its precision from its difference to the base; where this moved in few directions, the merge is "
        "close to that contribution's own in them",
    )
    scales: Digest | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the digest of the project's scales file: how large the base model's features are on public text, "
        "by which everybody divides alike",
    )
    differential_privacy: PrivacyBudget | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the most that each organization's Gram matrices may spend in all of its contributions to the "
        "project, by its own ledger; it covers the Grams, not the weights, and noise cannot be verified. Needs scales, "
        "and allows neither methods nor requests of statistics that are not noised",
    )
    minimum_cohort: Annotated[int, Field(ge=2, le=limits.MAX_COHORT)] = Field(
        default=3, description="a job merges at least this many organizations"
    )
    cohorts: Literal["frozen", "open"] = Field(
        default="frozen",
        description="frozen: after a release an organization is merged only in the same set, with the same weights, "
        "alpha and normalisation, because two merges that differ by one member reveal it. open: any cohort",
    )
    downloads: Literal["participants", "coordinator"] = Field(
        default="participants", description="who may download merged models"
    )
    requests: Annotated[tuple[RequestKind, ...], Field(max_length=limits.MAX_PATTERNS)] = Field(
        default=(),
        exclude_if=lambda value: not value,
        description="what the server may ask participants later. evaluate: metrics of merged models on held-out data, "
        "which the project's members see. gram: Gram matrices of layers as a merged model computes them, or one in "
        "which blocks are the organization's own. head: what a merged model's head is refit from, which reveals each "
        "organization's own head to the server. refit: what linear layers of a merged model are refit from, which "
        "tells the server each organization's own layers. calibration: how many examples bear each label, and a "
        "merged model's scores of them, by which biases are shifted",
    )
    missed_deadline: Literal["fail", "leave_out"] = Field(
        default="fail",
        exclude_if=lambda value: value == "fail",
        description="fail: a request that somebody did not answer in time fails. leave_out: it goes on with the "
        "answers of the others, if these are a cohort",
    )
    minimum_evaluation_examples: Annotated[int, Field(ge=1, le=limits.MAX_ROWS)] = Field(
        default=DEFAULT_EVALUATION_EXAMPLES,
        exclude_if=lambda value: value == DEFAULT_EVALUATION_EXAMPLES,
        description="an evaluation counts at least this many distinct examples; a calibration counts the scores of a "
        "label only if so many bear it, and so many do not",
    )
    release: ReleaseGate | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="what evaluations of a merged model by the organizations of its cohort have to say before it is "
        "released; until then its files are handed out for answering requests about it alone. Needs evaluate among "
        "the requests, and downloads: participants, for whoever evaluates a model holds it. Scores are each "
        "organization's own word",
    )

    @model_validator(mode="after")
    def _all_statistics_are_noised(self) -> Self:
        if self.differential_privacy is not None:
            bare: list[str] = [method for method in self.methods if method not in _METHODS_WITH_NOISE]
            bare += [request for request in self.requests if request not in _REQUESTS_WITH_NOISE]
            if bare:
                msg = (
                    f"with differential_privacy neither methods nor requests hold {bare[0]}, of which nothing is noised"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _everything_is_summed(self) -> Self:
        if self.aggregation != "secure":
            return self
        bare: list[str] = [method for method in self.methods if method not in SUMMED_METHODS]
        bare += [request for request in self.requests if request not in _SECURE_REQUESTS]
        if bare:
            msg = f"with aggregation: secure neither methods nor requests hold {bare[0]}, which is not summed"
            raise ValueError(msg)
        if self.minimum_cohort < MINIMUM_SUMMED:
            msg = (
                f"with aggregation: secure minimum_cohort is at least {MINIMUM_SUMMED}: of two, each knows the other's"
            )
            raise ValueError(msg)
        if self.missing_statistics == "estimate":
            msg = (
                "with aggregation: secure nobody's precision can be estimated, since the server sees no single weights"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _gate_can_be_passed(self) -> Self:
        if self.release is not None and "evaluate" not in self.requests:
            msg = "a release gate needs evaluate among the requests, which says how good a model is"
            raise ValueError(msg)
        if self.release is not None and self.downloads != "participants":
            msg = "a release gate needs downloads: participants, for whoever evaluates a model holds it"
            raise ValueError(msg)
        return self

    def role_of(self, name: str, shape: Sequence[int], vocabulary_size: int | None) -> TensorRole:
        """Say what a parameter is to this policy.

        Any tensor with a dimension of the vocabulary's size counts as an embedding, whatever its name: rows of it
        belong to tokens, so its change reveals which tokens occurred.
        """
        if (vocabulary_size is not None and vocabulary_size in shape) or matches_any(name, self.embedding_parameters):
            return "embedding"
        if matches_any(name, self.head_parameters):
            return "head"
        return "body"

    def may_leave(self, role: TensorRole) -> bool:
        """Tell whether weights of this role may leave an organization."""
        return {"embedding": self.embeddings == "average", "head": self.heads == "shared", "body": True}[role]

    def minimum_rows(self, width: int) -> int:
        """Distinct rows below which a tap of this width is not sent."""
        return math.ceil(self.minimum_rows_per_dimension * width)

    def minimum_examples(self, shape: Sequence[int]) -> int:
        """Distinct examples below which Fisher information with a parameter of this shape is not sent.

        The gradient of a matrix [m, k] that is used once per example has m + k unknowns, and the sum of n of their
        squares m·k values: with n below mk/(m + k), half of the harmonic mean of m and k, they may be solved for. A
        Gram matrix of width d may be below d/2 rows, so the policy's figure is the same multiple of either bound.
        """
        rows = shape[0] if shape else 1
        columns = math.prod(shape[1:])
        return math.ceil(self.minimum_rows_per_dimension * 2 * rows * columns / max(rows + columns, 1))


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a parameter's name matches one of the shell-style patterns, case-sensitively."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
