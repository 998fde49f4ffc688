"""Plan what a method solves by the statistics of a layer's inputs: the linear weights that read measured taps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

from gramfuse_shared.contract.manifest import LayerInfo, TapInfo, TensorInfo
from gramfuse_shared.contract.recipe import DEFAULT_ALPHA, DEFAULT_RIDGE, Recipe, resolve
from gramfuse_shared.contract.statistics_file import INT16_MOST_ALPHA
from gramfuse_shared.errors import ArchitectureMismatchError, RecipeInvalidError
from gramfuse_shared.fusion.methods import PrecisionMethod
from gramfuse_shared.fusion.methods.method import MethodSettings
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.steps import GramStep, Linear
from gramfuse_shared.merging.terms import Layout, Precision, Source, Term

Feed: TypeAlias = tuple[TapInfo, LayerInfo]
"""The tap that a linear weight reads, and how the weight is stored."""


@dataclass(frozen=True, slots=True)
class Taps:
    """The members' statistics without their values: of each member, what feeds which linear weight."""

    members: tuple[Member, ...]
    feeds: Mapping[str, Mapping[str, Feed]]

    @classmethod
    def of(cls, members: tuple[Member, ...]) -> Self:
        """Take what the members sent."""
        feeds = {
            member.key: {layer.weight: (tap, layer) for tap in member.taps for layer in tap.layers}
            for member in members
        }
        return cls(members, feeds)

    def measured(self, name: str, holders: Sequence[Member]) -> dict[str, Feed]:
        """Return what feeds a weight, by the keys of those of these members who measured it, in their order."""
        return {member.key: self.feeds[member.key][name] for member in holders if name in self.feeds[member.key]}

    def layout(self, name: str, terms: Sequence[Term]) -> Layout:
        """Tell how a weight is stored: as statistics say; without any, as most are."""
        told = (self.feeds[term.key][name][1].layout for term in terms if name in self.feeds[term.key])
        return next(told, "out_in")

    def why_average(self, name: str, holders: Sequence[Member]) -> str:
        """Say why a linear weight is averaged: who sent no statistics of its inputs."""
        without = [member.label for member in holders if name not in self.feeds[member.key]]
        if len(without) == len(holders):
            return "no contribution sent statistics of its inputs"
        return f"{len(without)} of {len(holders)} contributions sent no statistics of its inputs: {', '.join(without)}"

    def plan(
        self,
        method: PrecisionMethod,
        output: TensorInfo,
        terms: tuple[Term, ...],
        recipe: Recipe,
        reference: Source,
        compute: Precision,
        stored_bytes: int,
    ) -> GramStep:
        """Plan a linear weight that at least one of the terms' members measured; the others' precisions are estimated.

        Raises:
            ArchitectureMismatchError: statistics are of another width or layout than the weight.
            RecipeInvalidError: alpha is too large for statistics that were rounded.
        """
        fed = {term.key: self.feeds[term.key][output.name] for term in terms if output.name in self.feeds[term.key]}
        first, described = next(iter(fed.values()))
        layout, width = described.layout, first.width
        for key, (tap, layer) in fed.items():
            inputs = output.shape[1 if layer.layout == "out_in" else 0] if len(output.shape) == 2 else None  # noqa: PLR2004
            if inputs != tap.width or layer.layout != layout:
                label = next(member.label for member in self.members if member.key == key)
                msg = (
                    f"{output.name} is {list(output.shape)}, but the statistics of {label} describe it "
                    f"as {layer.layout} with {tap.width} inputs; collect them again from the model that is merged"
                )
                raise ArchitectureMismatchError(msg)
        alpha = resolve(recipe.parameters.alpha, output.name, default=DEFAULT_ALPHA)
        self._require_exact(output.name, alpha, fed)
        ridge = resolve(recipe.parameters.ridge, output.name, default=DEFAULT_RIDGE)
        settings = MethodSettings(alpha, recipe.parameters.normalize, ridge)
        tapped = tuple(replace(term, tap=fed[term.key][0]) for term in terms if term.key in fed)
        tapped += tuple(term for term in terms if term.key not in fed)
        if method.needs_float64(settings, width=width, rows=sum(tap.rows for tap, _ in fed.values())):
            compute = "float64"
        return GramStep((Linear(output, layout),), tapped, reference, width, settings, compute, stored_bytes)

    def _require_exact(self, name: str, alpha: float, fed: Mapping[str, Feed]) -> None:
        rounded = [member.label for member in self.members if member.key in fed and member.encoding == "int16"]
        if rounded and alpha > INT16_MOST_ALPHA:
            msg = (
                f"alpha is {alpha:g} for {name}, but the statistics of {', '.join(rounded)} are rounded to int16 and "
                f"serve up to {INT16_MOST_ALPHA:g}; lower alpha, or have the statistics sent as they were measured"
            )
            raise RecipeInvalidError(msg)
