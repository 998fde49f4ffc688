"""Recipes: the merge method and its parameters, with mergekit's key names where they exist."""

import fnmatch
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document, describe_validation
from gramfuse_shared.contract.policy import MergeMethod, MissingStatistics, Patterns
from gramfuse_shared.errors import RecipeInvalidError, TooLargeError
from gramfuse_shared.identifiers import JobId

DEFAULT_ALPHA: Final = 0.9
DEFAULT_WEIGHT: Final = 1.0
DEFAULT_RIDGE: Final = 0.0
DEFAULT_LAMBDA: Final = 1.0
DEFAULT_REFIT_RIDGE: Final = 0.01
"""Of `head` and `refit`, each in units of its own."""

DEFAULT_DENSITY: Final = 0.5

Normalization = Literal["equal", "rows", "norm", "parameter_norm"]
ComputeDtype = Literal["float32", "float64"]
OutputDtype = Literal["float32", "bfloat16", "float16"]

_GLOB_CHARACTERS: Final = frozenset("*?[")


class Conditional(Document):
    """A value for the parameters that a filter selects: a glob, or as in mergekit a part of the name; none: all."""

    filter: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    value: float

    def selects(self, name: str) -> bool:
        """Tell whether this value is meant for the parameter."""
        if self.filter is None:
            return True
        if _GLOB_CHARACTERS.isdisjoint(self.filter):
            return self.filter in name
        return fnmatch.fnmatchcase(name, self.filter)


Conditionals = Annotated[tuple[Conditional, ...], Field(min_length=1, max_length=limits.MAX_PATTERNS)]
Overridable = float | Conditionals
"""One number, or a list of `{filter, value}` of which the first that selects a parameter's name applies."""


def resolve(value: Overridable, name: str, *, default: float) -> float:
    """Return the number that applies to the parameter; `default` where no filter selects it."""
    if isinstance(value, float):
        return value
    return next((conditional.value for conditional in value if conditional.selects(name)), default)


def values_of(value: Overridable) -> list[float]:
    """List the values that a setting takes anywhere."""
    return [value] if isinstance(value, float) else [conditional.value for conditional in value]


class ModelParameters(Document):
    """Parameters of one model of the merge."""

    weight: Overridable = DEFAULT_WEIGHT

    @field_validator("weight")
    @classmethod
    def _weights_are_not_negative(cls, weight: Overridable) -> Overridable:
        if any(value < 0 for value in values_of(weight)):
            msg = "a weight is not negative"
            raise ValueError(msg)
        return weight


class ModelEntry(Document):
    """One model of the merge: a folder for `gramfuse merge`; for the service an organization or a contribution's id.

    `labels`, for folders alone, are the label ids that the model was trained on, where these are not all; a
    contribution says its own.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    parameters: ModelParameters = ModelParameters()
    labels: Annotated[tuple[int, ...], Field(max_length=limits.MAX_LABELS)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )


class MethodParameters(Document):
    """Parameters of the method.

    RegMean: `alpha` scales a Gram matrix's off-diagonal, `ridge`, times the mean of the diagonal, is added to that
    (`wudi` solves, with one, what it otherwise descends; `refit` multiplies each entry of the diagonal by it, and that
    of `head` and `refit` is above 0), `normalize` says whether organizations count alike (`equal`, as published) or by
    their `rows`, `missing_statistics` what becomes of a linear layer whose inputs some of them did not measure: an
    `average`, or their precision is an `estimate` from their difference to the base. `fisher`, `head` and `refit` read
    `normalize` too: of `fisher` a row is an example, and `norm` divides an organization's Fisher information by its
    norm, `parameter_norm` that of each parameter by its own.
    Methods that add differences to the base: `lambda` scales what is added, `density` is the share of each difference
    that `ties` and `dare_…` keep, `seed` begins what `dare_…` leave to chance. What came after `alpha` and `normalize`
    is written only where it is not the default: what was signed before keeps its bytes.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    alpha: Overridable = DEFAULT_ALPHA
    normalize: Normalization = "equal"
    lambda_: Overridable = Field(
        default=DEFAULT_LAMBDA, alias="lambda", exclude_if=lambda value: value == DEFAULT_LAMBDA
    )
    density: Overridable = Field(default=DEFAULT_DENSITY, exclude_if=lambda value: value == DEFAULT_DENSITY)
    seed: Annotated[int, Field(ge=0, le=limits.MAX_SEED, exclude_if=lambda value: value == 0)] = 0
    ridge: Overridable = Field(default=DEFAULT_RIDGE, exclude_if=lambda value: value == DEFAULT_RIDGE)
    missing_statistics: MissingStatistics = Field(default="average", exclude_if=lambda value: value == "average")
    exclude: Patterns = ()

    @field_validator("alpha")
    @classmethod
    def _alpha_is_a_share(cls, alpha: Overridable) -> Overridable:
        if any(not 0 <= value <= 1 for value in values_of(alpha)):
            msg = "alpha lies between 0 and 1"
            raise ValueError(msg)
        return alpha

    @field_validator("ridge")
    @classmethod
    def _ridges_are_not_negative(cls, ridge: Overridable) -> Overridable:
        if any(not 0 <= value <= limits.MAX_RIDGE for value in values_of(ridge)):
            msg = f"ridge lies between 0 and {limits.MAX_RIDGE:g}"
            raise ValueError(msg)
        return ridge

    @field_validator("density")
    @classmethod
    def _density_is_a_positive_share(cls, density: Overridable) -> Overridable:
        if any(not 0 < value <= 1 for value in values_of(density)):
            msg = "density is above 0 and at most 1"
            raise ValueError(msg)
        return density


PARAMETERS_OF: Final[Mapping[MergeMethod, tuple[str, ...]]] = MappingProxyType(
    {
        "linear": (),
        "regmean": ("alpha", "ridge", "normalize", "missing_statistics"),
        "fisher": ("normalize",),
        "task_arithmetic": ("lambda",),
        "ties": ("lambda", "density"),
        "dare_linear": ("lambda", "density", "seed"),
        "dare_ties": ("lambda", "density", "seed"),
        "wudi": ("ridge",),
        "head": ("ridge", "normalize"),
        "refit": ("ridge", "normalize"),
        "calibration": (),
    }
)
"""The parameters that each method reads, beside `exclude`, which all do that merge weights."""

REFIT_METHODS: Final[frozenset[MergeMethod]] = frozenset({"head", "refit", "calibration"})
"""Methods that change a merged model by the answers to a request, and merge no weights."""

_RIDGED_REFITS: Final[frozenset[MergeMethod]] = frozenset({"head", "refit"})


class TokenizerSource(Document):
    """Where the merged model's tokenizer comes from; only the base's is possible."""

    source: Literal["base"] = "base"


class Recipe(Document):
    """A merge, complete enough to be repeated. Fields as in mergekit; `normalize` is gramfuse's own.

    `dtype` is the precision of the computation (default: float32, and float64 where alpha needs it), `out_dtype`
    that of the floating-point tensors written (default: as the base stores them). `exclude`d parameters are the base's.
    With `request`, the service merges a model anew: `base_model` is a merged model of the project, the statistics are
    the answers to this request about it, and what they do not cover stays as it is there. `head`, `refit` and
    `calibration` are always that. A recipe of `head` or `refit` that says no ridge gets the default's, and from there
    on says it.
    """

    merge_method: MergeMethod
    base_model: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    models: Annotated[tuple[ModelEntry, ...], Field(max_length=limits.MAX_COHORT)] = ()
    parameters: MethodParameters = MethodParameters()
    dtype: ComputeDtype | None = None
    out_dtype: OutputDtype | None = None
    tokenizer: TokenizerSource = TokenizerSource()
    request: JobId | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _models_are_distinct(self) -> Self:
        names = [entry.model for entry in self.models]
        if len(set(names)) != len(names):
            msg = "a model is named twice"
            raise ValueError(msg)
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_refit_has_a_ridge(cls, document: Any) -> Any:  # noqa: ANN401 - whatever is validated
        if not isinstance(document, Mapping) or document.get("merge_method") not in _RIDGED_REFITS:
            return document
        parameters = document.get("parameters", {})
        if isinstance(parameters, MethodParameters):
            parameters = {name: getattr(parameters, name) for name in parameters.model_fields_set}
        if isinstance(parameters, Mapping):
            return {**document, "parameters": {"ridge": DEFAULT_REFIT_RIDGE, **parameters}}
        return document

    @model_validator(mode="after")
    def _a_refit_is_of_a_request(self) -> Self:
        if self.merge_method not in REFIT_METHODS:
            return self
        if self.request is None:
            msg = (
                f"{self.merge_method} merges the answers to a request about a merged model: name that as base_model, "
                "and the request"
            )
            raise ValueError(msg)
        if self.parameters.exclude:
            msg = f"{self.merge_method} changes what the answers are about, and nothing else; leave out exclude"
            raise ValueError(msg)
        if self.merge_method in _RIDGED_REFITS and min(values_of(self.parameters.ridge)) <= 0:
            what = "a head is" if self.merge_method == "head" else "layers are"
            msg = f"{what} refit with a ridge above 0: without one what follows a layer norm has no one solution"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _norm_is_of_fisher(self) -> Self:
        if self.parameters.normalize in {"norm", "parameter_norm"} and self.merge_method != "fisher":
            msg = f"normalize: {self.parameters.normalize} is a parameter of fisher, not of {self.merge_method}"
            raise ValueError(msg)
        return self


def parse_recipe(text: str) -> Recipe:
    """Read a recipe from YAML (of which JSON is a part).

    Raises:
        RecipeInvalidError: not YAML, unknown keys, or values out of range; the message names the places.
        TooLargeError: the text is over `limits.MAX_REQUEST_BYTES`.
    """
    if len(text) > limits.MAX_REQUEST_BYTES:
        msg = f"the recipe has {len(text)} characters; at most {limits.MAX_REQUEST_BYTES} are read"
        raise TooLargeError(msg)
    try:
        document: Any = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader without aliases
    except (yaml.YAMLError, RecursionError) as error:
        msg = f"the recipe is not YAML: {error}"
        raise RecipeInvalidError(msg) from error
    if not isinstance(document, Mapping):
        msg = "the recipe is not a mapping; it starts with a line such as 'merge_method: regmean'"
        raise RecipeInvalidError(msg)
    try:
        return Recipe.model_validate(_with_mergekit_synonyms(document))
    except ValidationError as error:
        raise RecipeInvalidError(describe_validation("recipe", error.errors(), Recipe)) from error


def _with_mergekit_synonyms(document: Mapping[str, Any]) -> dict[str, Any]:
    """Accept mergekit's older spelling `tokenizer_source: base` for `tokenizer: {source: base}`."""
    renamed = dict(document)
    if "tokenizer_source" in renamed and "tokenizer" not in renamed:
        renamed["tokenizer"] = {"source": renamed.pop("tokenizer_source")}
    return renamed


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few nested ones unfold to gigabytes, and no recipe needs them."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            msg = "aliases are not read"
            raise yaml.YAMLError(msg)
        return super().compose_node(parent, index)
