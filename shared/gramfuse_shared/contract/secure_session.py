"""The manifest of a session of secure aggregation: who sums what, how numbers become words, and how many may drop out.

Its digest is in every message of the session (`contract.secure`), so whoever signs one has agreed to all of this.
"""

from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import LayerInfo, PolicyReference, Size, TensorInfo
from gramfuse_shared.contract.policy import MINIMUM_SUMMED, SUMMED_METHODS
from gramfuse_shared.contract.recipe import DEFAULT_ALPHA, DEFAULT_WEIGHT, Overridable, Recipe, resolve
from gramfuse_shared.identifiers import Digest, JobId, Key, OrganizationName, ProjectId, TensorName

WORD_BITS: Final = 64
MAX_SECURE_ALPHA: Final = 0.95
"""Up to here the scaled sum's smallest eigenvalue is at least 0.05, so that rounding to words stays below 1e-10."""

SummedName = Annotated[str, Field(min_length=1, max_length=limits.MAX_TENSOR_NAME_CHARACTERS + 16)]


def weighted_name(parameter: str) -> str:
    """Name of the tensor that holds ΣcᵢDᵢ of a parameter."""
    return f"weighted.{parameter}"


def product_name(parameter: str) -> str:
    """Name of the tensor that holds ΣDᵢPᵢ of a linear weight, [out, in] whatever its layout."""
    return f"product.{parameter}"


def precision_name(tap: str) -> str:
    """Name of the tensor that holds ΣPᵢ of a tap, packed."""
    return f"precision.{tap}"


def threshold_of(members: int) -> int:
    """Return t = ⌊2N/3⌋ + 1: two sets of t have more than N/3 members in common, so no two can both be signed.

    Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, theorem 6.5.
    """
    return 2 * members // 3 + 1


class SummedTensor(Document):
    """A tensor of which everybody sends masked words, and how a number x becomes one: round(x·2^fraction_bits).

    Attributes:
        name: `weighted.<parameter>`, `precision.<tap>` or, of Fisher information, `precision.<parameter>`, and
            `product.<parameter>`; of answers to `head` `gram.<tap>` and `product.<tap>` as in their statistics file,
            of answers to `calibration` `labelled`, `others` and `holders`.
        shape: of the words.
        fraction_bits: may be negative for what is always large, and above 63 for what is always small.
        bound: of |x|; who has a larger one sends nothing.
    """

    name: SummedName
    shape: Annotated[tuple[Size, ...], Field(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    fraction_bits: Annotated[int, Field(ge=-limits.MAX_FRACTION_BITS, le=limits.MAX_FRACTION_BITS)]
    bound: Annotated[float, Field(gt=0)]

    @property
    def count(self) -> int:
        """How many words."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def fits(self, members: int) -> bool:
        """Tell whether the sum of so many stays within a word: N·(bound·2^fraction_bits + ½) < 2^63, ½ for rounding."""
        largest = Fraction(self.bound) * Fraction(2) ** self.fraction_bits + Fraction(1, 2)
        return bool(members * largest < 2 ** (WORD_BITS - 1))


class SessionMember(Document):
    """A member: whose it is, the contribution by its manifest's digest, the identity key, and the weight cᵢ.

    `answer` is the digest of its announced answer, where answers to a request are summed.
    """

    organization: OrganizationName
    contribution: Digest
    answer: Digest | None = Field(default=None, exclude_if=lambda value: value is None)
    identity: Key
    weight: Overridable = DEFAULT_WEIGHT


class SessionTap(Document):
    """A tap whose precisions are summed, and the linears whose products with it are."""

    name: TensorName
    width: Annotated[int, Field(ge=1, le=limits.MAX_TAP_WIDTH)]
    layers: Annotated[tuple[LayerInfo, ...], Field(min_length=1, max_length=limits.MAX_TAPS)]


class SessionManifest(Document):
    """What all members of a session agree on before they send anything.

    Attributes:
        project: whose contributions they are.
        session: the id of the first request of the session.
        policy: under which all contributions were made.
        base: the base model's fingerprint.
        recipe: method, α, normalization and, of an answered request, which; `members` has the weights.
        scales: digest of the scales file by which RegMean's precisions are scaled; None where none are summed.
        members: by ascending organization.
        threshold: t, the least number whose words, and whose word, a sum needs.
        taps: whose precisions are among `sums`.
        sums: what is summed, in the order of the file of words.
    """

    format: Literal["gramfuse/session/1"] = "gramfuse/session/1"
    project: ProjectId
    session: JobId
    policy: PolicyReference
    base: Digest
    recipe: Recipe
    scales: Digest | None = None
    members: Annotated[tuple[SessionMember, ...], Field(min_length=MINIMUM_SUMMED, max_length=limits.MAX_SECURE_COHORT)]
    threshold: int
    taps: Annotated[tuple[SessionTap, ...], Field(max_length=limits.MAX_TAPS)] = ()
    sums: Annotated[tuple[SummedTensor, ...], Field(min_length=1, max_length=limits.MAX_TENSORS_PER_FILE)]

    @cached_property
    def digest(self) -> str:
        """What messages of this session name."""
        return self.content_digest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, which has a digest of its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied

    @property
    def may_drop_out(self) -> int:
        """How many members may stop answering without the sum being lost; of three, none."""
        return len(self.members) - self.threshold

    @property
    def organizations(self) -> tuple[str, ...]:
        """The members' names, ascending."""
        return tuple(member.organization for member in self.members)

    @property
    def elements(self) -> tuple[str, ...]:
        """Names of the parameters that are weighed element by element, with Fisher information."""
        if self.recipe.merge_method != "fisher":
            return ()
        prefix = precision_name("")
        return tuple(tensor.name.removeprefix(prefix) for tensor in self.sums if tensor.name.startswith(prefix))

    @property
    def words(self) -> tuple[TensorInfo, ...]:
        """The tensors of a file of masked words, in file order."""
        return tuple(TensorInfo(name=tensor.name, dtype="I64", shape=tensor.shape) for tensor in self.sums)

    def member(self, organization: str) -> SessionMember | None:
        """Return a member; None where the organization is none."""
        return next((member for member in self.members if member.organization == organization), None)

    def alpha_of(self, parameter: str) -> float:
        """Return the α that applies to a linear weight."""
        return resolve(self.recipe.parameters.alpha, parameter, default=DEFAULT_ALPHA)

    @model_validator(mode="after")
    def _members_are_distinct(self) -> Self:
        names = list(self.organizations)
        if names != sorted(set(names)):
            msg = "members stand once each, by ascending organization"
            raise ValueError(msg)
        for what in ("contribution", "identity"):
            if len({getattr(member, what) for member in self.members}) < len(names):
                msg = f"two members have the same {what}"
                raise ValueError(msg)
        if self.threshold != threshold_of(len(names)):
            msg = f"of {len(names)} members the threshold is {threshold_of(len(names))}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _recipe_is_of_sums(self) -> Self:
        if self.recipe.merge_method not in SUMMED_METHODS:
            msg = f"{self.recipe.merge_method} is no function of sums"
            raise ValueError(msg)
        alpha = self.recipe.parameters.alpha
        alphas = [alpha] if isinstance(alpha, float) else [entry.value for entry in alpha]
        if self.recipe.merge_method == "regmean" and max(alphas) > MAX_SECURE_ALPHA:
            msg = f"alpha is at most {MAX_SECURE_ALPHA} where Gram matrices are summed as words"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _sums_fit(self) -> Self:
        names = [tensor.name for tensor in self.sums]
        if len(set(names)) != len(names):
            msg = "a sum is named twice"
            raise ValueError(msg)
        too_large = next((tensor.name for tensor in self.sums if not tensor.fits(len(self.members))), None)
        if too_large is not None:
            msg = f"the sum of {len(self.members)} values of {too_large} at their bound is beyond a word"
            raise ValueError(msg)
        summed = set(names)
        for tap in self.taps:
            needed = {precision_name(tap.name), *(product_name(layer.weight) for layer in tap.layers)}
            if not needed <= summed:
                msg = f"tap {tap.name} is named, but not all of its sums are"
                raise ValueError(msg)
        is_of_answers = self.recipe.request is not None
        if any((member.answer is not None) != is_of_answers for member in self.members):
            msg = "members have answers where the recipe names the request that they answer, and only there"
            raise ValueError(msg)
        if (self.scales is not None) != (self.recipe.merge_method == "regmean" and bool(self.taps)):
            msg = "a scales file is named where regmean sums precisions of taps, and only there"
            raise ValueError(msg)
        return self
