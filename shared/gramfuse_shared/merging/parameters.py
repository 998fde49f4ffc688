"""Decide of each parameter by which step it is merged, and from whom, in the order that `plan_merge` states."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.policy import matches_any
from gramfuse_shared.contract.recipe import (
    DEFAULT_DENSITY,
    DEFAULT_LAMBDA,
    DEFAULT_RIDGE,
    DEFAULT_WEIGHT,
    Recipe,
    resolve,
)
from gramfuse_shared.contract.safetensors_header import FLOAT_DTYPES
from gramfuse_shared.errors import ArchitectureMismatchError, RecipeInvalidError
from gramfuse_shared.fusion.methods import (
    DeltaMethod,
    DifferenceMethod,
    ElementMethod,
    Method,
    PrecisionMethod,
)
from gramfuse_shared.fusion.methods.method import DeltaSettings, MethodSettings
from gramfuse_shared.merging.elements import Elements
from gramfuse_shared.merging.label_rows import sets_of_rows, why_rows
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.steps import (
    AverageStep,
    CopyStep,
    DeltaStep,
    GramStep,
    Linear,
    MergeStep,
    RowPart,
    RowsStep,
    WholeStep,
)
from gramfuse_shared.merging.taps import Feed, Taps
from gramfuse_shared.merging.terms import Precision, Source, Term, tensor_bytes

_OUT_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def output_tensor(stored: TensorInfo, recipe: Recipe) -> TensorInfo:
    """Return the tensor that comes out: as stored, floating-point ones in the recipe's `out_dtype`."""
    if recipe.out_dtype is None or stored.dtype not in FLOAT_DTYPES:
        return stored
    return stored.model_copy(update={"dtype": _OUT_DTYPES[recipe.out_dtype]})


_GroupKey = tuple[object, ...]


@dataclass(slots=True)
class Planner:
    """One merge's members, base and recipe."""

    members: tuple[Member, ...]
    base: Mapping[str, TensorInfo] | None
    recipe: Recipe
    method: Method
    minimum_holders: int
    embedding_parameters: Sequence[str]
    only: Collection[str] | None
    taps: Taps = field(init=False)
    elements: Elements | None = field(init=False)

    def __post_init__(self) -> None:
        self.taps = Taps.of(self.members)
        self.elements = Elements.of(self.members) if isinstance(self.method, ElementMethod) else None

    def plan_steps(self) -> list[MergeStep]:
        """Return the steps, of each parameter one, those of a group of linear weights joined."""
        steps: dict[_GroupKey, MergeStep] = {}
        for name in self._names():
            step = self._plan_parameter(name)
            if step is None:
                continue
            key: _GroupKey = (name,)
            if isinstance(step, GramStep) and step.reads_taps:
                key = (step.terms, step.reference, step.settings, step.compute, step.outputs[0].dtype)
            other = steps.get(key)
            if isinstance(other, GramStep) and isinstance(step, GramStep):
                stored = other.stored_bytes + step.stored_bytes
                step = replace(other, linears=other.linears + step.linears, stored_bytes=stored)
            steps[key] = step  # a dict keeps the place of the group's first linear
        return list(steps.values())

    def _names(self) -> list[str]:
        names = dict.fromkeys(self.base or ())
        for member in self.members:
            names.update(dict.fromkeys(member.tensors))
        return list(names)

    def _plan_parameter(self, name: str) -> MergeStep | None:
        holders = [member for member in self.members if name in member.tensors]
        stored = self._base_tensor(name) or holders[0].tensors[name]
        for member in holders:
            _require_same_kind(stored, member)
        output = output_tensor(stored, self.recipe)
        if matches_any(name, self.recipe.parameters.exclude):
            return self._copy_of_base(output, "excluded by the recipe")
        if self.only is not None and name not in self.only:
            return self._copy_of_base(output, None)
        if stored.dtype not in FLOAT_DTYPES:
            return self._copy_of_base(output, None) or CopyStep(output, holders[0].key, stored)
        weights = {member.key: resolve(member.weight, name, default=DEFAULT_WEIGHT) for member in holders}
        holders = [member for member in holders if weights[member.key] > 0]
        sets = sets_of_rows(output, holders)
        if not sets:
            return self._plan_values(output, stored, holders, weights)
        parts = [RowPart(rows, self._plan_values(output, stored, sharing, weights)) for rows, sharing in sets]
        return RowsStep(output, tuple(parts), why_rows(sets, parts, len(holders)))

    def _plan_values(
        self, output: TensorInfo, stored: TensorInfo, holders: list[Member], weights: Mapping[str, float]
    ) -> WholeStep:
        """Plan a floating-point parameter of these members, each with a positive weight."""
        name = output.name
        if len(holders) < max(1, self.minimum_holders):
            return self._plan_without(output, len(holders))
        holders = self._with_untouched(name, holders)
        weights = {member.key: resolve(member.weight, name, default=DEFAULT_WEIGHT) for member in holders}
        terms = tuple(Term(member.key, weights[member.key]) for member in holders)
        stored_bytes = sum(tensor_bytes(self._tensor_of(member, name)) for member in holders)
        compute = self._compute(stored, holders)
        differing = self._plan_differences(output, stored, terms, compute, stored_bytes)
        if differing is not None:
            return differing
        if len(holders) == 1:
            return CopyStep(output, holders[0].key, holders[0].tensors[name])
        tuned = [member for member in holders if name in member.tensors]
        if self.elements is not None and len(tuned) > 1 and self.elements.cover(name, tuned):
            return self.elements.plan(output, _terms_of(tuned, terms), self.recipe, compute, _bytes_of(tuned, name))
        fed = self.taps.measured(name, holders)
        # who did not tune a layer has not measured for it either: it is solved among the others
        weighed = [member for member in holders if name in member.tensors or member.key in fed]
        are_weighed = len(weighed) > 1 and self._are_weighed(name, fed, weighed)
        if not isinstance(self.method, PrecisionMethod) or not are_weighed:
            # W_ref: whatever is taken, only differences count; the first member's own is zero, so it costs no product
            why = self._why_average(output, holders)
            return AverageStep(output, terms, holders[0].key, compute, stored_bytes, why)
        terms = _terms_of(weighed, terms)
        stored_bytes = sum(tensor_bytes(self._tensor_of(member, name)) for member in weighed)
        reference: Source = weighed[0].key
        if len(fed) < len(weighed):
            reference, stored_bytes = None, stored_bytes + tensor_bytes(stored)
        return self.taps.plan(self.method, output, terms, self.recipe, reference, compute, stored_bytes)

    def _with_untouched(self, name: str, holders: list[Member]) -> list[Member]:
        """Add the members whose models hold the base's value, in the order of the members."""
        if self._base_tensor(name) is None:
            return holders
        return [
            member
            for member in self.members
            if member in holders
            or (
                member.left_out == "base"
                and name not in member.tensors
                and resolve(member.weight, name, default=DEFAULT_WEIGHT) > 0
            )
        ]

    def _tensor_of(self, member: Member, name: str) -> TensorInfo:
        return member.tensors[name] if name in member.tensors or self.base is None else self.base[name]

    def _plan_without(self, output: TensorInfo, holders: int) -> CopyStep:
        """Plan a parameter that too few members hold with a weight."""
        reason = f"{holders} of {len(self.members)} contributions hold it, {self.minimum_holders} are needed"
        copy = self._copy_of_base(output, reason if holders else None)
        if copy is None:
            msg = (
                f"too few models give {output.name} a weight above 0, and the base does not store it; weigh or exclude "
                "it"
            )
            raise RecipeInvalidError(msg)
        return copy

    def _are_weighed(self, name: str, fed: Mapping[str, Feed], holders: list[Member]) -> bool:
        """Tell whether the method has every holder's precision: measured, or estimated beside a measured one."""
        if len(fed) == len(holders):
            return self.method.reads_taps
        estimates = self.recipe.parameters.missing_statistics == "estimate" and self._base_tensor(name) is not None
        return self.method.reads_taps and bool(fed) and estimates

    def _delta_settings(self, name: str) -> DeltaSettings:
        parameters = self.recipe.parameters
        return DeltaSettings(
            scale=resolve(parameters.lambda_, name, default=DEFAULT_LAMBDA),
            density=resolve(parameters.density, name, default=DEFAULT_DENSITY),
            seed=parameters.seed,
        )

    def _compute(self, stored: TensorInfo, holders: list[Member]) -> Precision:
        coarse = stored.dtype != "F64" and all(
            self._tensor_of(member, stored.name).dtype != "F64" for member in holders
        )
        return "float32" if coarse and self.recipe.dtype != "float64" else "float64"

    def _plan_differences(
        self, output: TensorInfo, stored: TensorInfo, terms: tuple[Term, ...], compute: Precision, stored_bytes: int
    ) -> WholeStep | None:
        """Plan what the method makes of the members' differences from the base alone; None where it needs none.

        Only statistics say which weights are stored [in, out]; without any, all are taken to be [out, in].
        """
        if self._base_tensor(output.name) is None:
            return None
        if isinstance(self.method, DeltaMethod):
            turns = self.method.combine.turns
            return DeltaStep(output, terms, stored, self._delta_settings(output.name), turns, compute, stored_bytes)
        if not isinstance(self.method, DifferenceMethod) or len(terms) == 1 or not self._looks_linear(output):
            return None
        layout = self.taps.layout(output.name, terms)
        width = output.shape[1 if layout == "out_in" else 0]
        ridge = resolve(self.recipe.parameters.ridge, output.name, default=DEFAULT_RIDGE)
        settings = MethodSettings(alpha=1.0, normalize="equal", ridge=ridge)
        if self.method.needs_float64(settings, width=width, rows=0):
            compute = "float64"
        stored_bytes += tensor_bytes(stored)
        return GramStep((Linear(output, layout),), terms, None, width, settings, compute, stored_bytes)

    def _why_average(self, output: TensorInfo, holders: list[Member]) -> str | None:
        """Say why a parameter is averaged that the method would treat; None where an average is all that it has."""
        if isinstance(self.method, DeltaMethod):
            return "the base does not store it, so nothing can be added to it"
        if isinstance(self.method, DifferenceMethod):
            return "the base does not store it, so there is no difference" if self._looks_linear(output) else None
        if self.elements is not None:
            return self.elements.why_average(output.name, holders)
        if not self.method.reads_taps:
            return None
        fed = self.taps.measured(output.name, holders)
        if not fed and not self._looks_linear(output):
            return None
        reason = self.taps.why_average(output.name, holders)
        if fed and self.recipe.parameters.missing_statistics == "estimate":
            reason += "; and the base does not store it, so none are estimated"
        return reason

    def _looks_linear(self, tensor: TensorInfo) -> bool:
        is_matrix = len(tensor.shape) == 2 and tensor.name.endswith(".weight")  # noqa: PLR2004 - rows and columns
        return is_matrix and not matches_any(tensor.name, self.embedding_parameters)

    def _base_tensor(self, name: str) -> TensorInfo | None:
        return None if self.base is None else self.base.get(name)

    def _copy_of_base(self, output: TensorInfo, reason: str | None) -> CopyStep | None:
        stored = self._base_tensor(output.name)
        return None if stored is None else CopyStep(output, None, stored, reason)


def _terms_of(members: Sequence[Member], terms: Sequence[Term]) -> tuple[Term, ...]:
    keys = {member.key for member in members}
    return tuple(term for term in terms if term.key in keys)


def _bytes_of(members: Sequence[Member], name: str) -> int:
    return sum(tensor_bytes(member.tensors[name]) for member in members)


def _require_same_kind(expected: TensorInfo, member: Member) -> None:
    found = member.tensors[expected.name]
    same_kind = found.dtype == expected.dtype or {found.dtype, expected.dtype} <= FLOAT_DTYPES
    if found.shape != expected.shape or not same_kind:
        msg = (
            f"{expected.name} is {found.dtype} {list(found.shape)} in {member.label}, elsewhere {expected.dtype} "
            f"{list(expected.shape)}; merge models of one architecture, or exclude this parameter"
        )
        raise ArchitectureMismatchError(msg)
