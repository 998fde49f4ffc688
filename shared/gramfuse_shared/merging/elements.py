"""Plan what a method weighs element by element: the parameters of which every member sent Fisher information."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

from gramfuse_shared.contract.manifest import FisherParameter, TensorInfo
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import ArchitectureMismatchError, RecipeInvalidError
from gramfuse_shared.fusion.methods.method import MethodSettings
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.steps import DiagonalStep, MergeStep, RowsStep, WholeStep
from gramfuse_shared.merging.terms import FisherTotals, Precision, ReadySum, Term


@dataclass(frozen=True, slots=True)
class Elements:
    """The members' Fisher information without its values: of each by parameter, and over how many examples."""

    members: tuple[Member, ...]
    sent: Mapping[str, Mapping[str, FisherParameter]]
    examples: Mapping[str, int]

    @classmethod
    def of(cls, members: tuple[Member, ...]) -> Self:
        """Take what the members sent.

        Raises:
            RecipeInvalidError: some measured it with drawn and some with given labels, which is of other magnitude.
        """
        _require_alike_labels(members)
        found = {member.key: member.fisher for member in members if member.fisher is not None}
        return cls(
            members,
            {key: {parameter.name: parameter for parameter in fisher.parameters} for key, fisher in found.items()},
            {key: fisher.examples for key, fisher in found.items()},
        )

    def cover(self, name: str, holders: Sequence[Member]) -> bool:
        """Tell whether all of these members sent Fisher information of a parameter."""
        return all(name in self.sent.get(member.key, ()) for member in holders)

    def why_average(self, name: str, holders: Sequence[Member]) -> str:
        """Say why a parameter is averaged: who sent no Fisher information of it."""
        without = [member.label for member in holders if name not in self.sent.get(member.key, ())]
        if len(without) == len(holders):
            return "no contribution sent Fisher information of it"
        return f"{len(without)} of {len(holders)} contributions sent no Fisher information of it: {', '.join(without)}"

    def plan(
        self, output: TensorInfo, terms: tuple[Term, ...], recipe: Recipe, compute: Precision, stored_bytes: int
    ) -> DiagonalStep:
        """Plan a parameter that is covered; the first term's member is the reference. Norms come with `with_norms`.

        Raises:
            ArchitectureMismatchError: Fisher information is of another shape than the parameter.
        """
        for term in terms:
            shape = self.sent[term.key][output.name].shape
            if shape != output.shape:
                label = next(member.label for member in self.members if member.key == term.key)
                msg = (
                    f"{output.name} is {list(output.shape)}, the Fisher information of {label} says {list(shape)}; "
                    "measure it again on the model that is merged"
                )
                raise ArchitectureMismatchError(msg)
        weighed = tuple(replace(term, fisher=FisherTotals(self.examples[term.key], 0.0)) for term in terms)
        settings = MethodSettings(alpha=1.0, normalize=recipe.parameters.normalize)
        return DiagonalStep(output, weighed, terms[0].key, settings, compute, stored_bytes)

    def with_norms(self, steps: Sequence[MergeStep], recipe: Recipe) -> list[MergeStep]:
        """Tell every term the norm of its member's Fisher information that the recipe divides by.

        That is the norm over all parameters that are weighed, or (`parameter_norm`) over the term's own.

        Raises:
            RecipeInvalidError: there is no such parameter, so the merge would be an average under another name.
        """
        weighed = {output.name for step in steps if _is_weighed(step) for output in step.outputs}
        if not weighed and len(self.members) > 1:
            without = ", ".join(member.label for member in self.members if member.key not in self.sent)
            none = f"; none came from {without}" if without else ""
            msg = (
                "there is no parameter of which all models have Fisher information, so "
                f"{recipe.merge_method} would be an average{none}. Measure it: gramfuse stats fisher"
            )
            raise RecipeInvalidError(msg)
        alone = recipe.parameters.normalize == "parameter_norm"

        def norm_of(key: str, name: str) -> float:
            sent = self.sent[key]
            return sent[name].norm if alone else overall[key]

        overall = {
            key: math.hypot(*(sent[name].norm for name in weighed if name in sent)) for key, sent in self.sent.items()
        }
        return [_with_norms(step, norm_of) for step in steps]


def _require_alike_labels(members: Sequence[Member]) -> None:
    kinds: dict[str, list[str]] = {}
    for member in members:
        if member.fisher is not None:
            kinds.setdefault(member.fisher.collector.labels, []).append(member.label)
    if len(kinds) > 1:
        found = "; ".join(f"{labels}: {', '.join(sorted(names))}" for labels, names in sorted(kinds.items()))
        msg = f"Fisher information was measured with different labels ({found}); measure all of it in the same way"
        raise RecipeInvalidError(msg)


_NormOf: TypeAlias = Callable[[str, str], float]
"""From a member's key and a parameter's name: what the member's Fisher information of that parameter is divided by."""


def _is_weighed(step: MergeStep) -> bool:
    if isinstance(step, RowsStep):
        return any(_is_weighed(part.step) for part in step.parts)
    return isinstance(step, DiagonalStep)


def _with_norms(step: MergeStep, norm_of: _NormOf) -> MergeStep:
    if isinstance(step, RowsStep):
        return replace(step, parts=tuple(replace(part, step=_whole(part.step, norm_of)) for part in step.parts))
    return _whole(step, norm_of)


def _whole(step: WholeStep, norm_of: _NormOf) -> WholeStep:
    if not isinstance(step, DiagonalStep) or isinstance(step.terms, ReadySum):
        return step
    name = step.output.name
    told = (replace(term.fisher, norm=norm_of(term.key, name)) if term.fisher else None for term in step.terms)
    return replace(
        step, terms=tuple(replace(term, fisher=fisher) for term, fisher in zip(step.terms, told, strict=True))
    )
