"""Decide which contributions a job merges, and whether it may. Pure: rows in, a cohort or a refusal out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gramfuse_shared import limits
from gramfuse_shared.contract.policy import MergeMethod, Policy
from gramfuse_shared.contract.recipe import PARAMETERS_OF, ModelParameters, Overridable, Recipe, values_of
from gramfuse_shared.errors import CohortFrozenError, PolicyViolationError, RecipeInvalidError

SELECTIVE_METHODS: Final = frozenset(
    {"fisher", "wudi"} | {method for method, reads in PARAMETERS_OF.items() if "density" in reads}
)
"""Methods by which parts of the result may come from one member alone: differences are dropped, all others' Fisher
information of an element is next to nothing, or nobody else moved in a direction."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The contribution of an organization that counts, made under the project's current policy."""

    contribution: str
    organization: str


@dataclass(frozen=True, slots=True)
class CohortMember:
    """A contribution that a job merges, with its weight, and what its manifest says.

    Attributes:
        contribution: its id.
        organization: whose it is.
        weight: the recipe's.
        labels: ids of the labels that it trained; None: all.
        tensors: names of the parameters that it holds.
    """

    contribution: str
    organization: str
    weight: Overridable
    labels: tuple[int, ...] | None = None
    tensors: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Release:
    """A job of the project that published a model or still may; `weights`, trained `labels` and the names of the
    `tensors` that were sent, by organization. A candidate that a release gate holds back counts: who evaluates it
    holds it.
    """

    job: str
    recipe: Recipe
    weights: Mapping[str, Overridable]
    labels: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    tensors: Mapping[str, frozenset[str]] = field(default_factory=dict)


def resolve_cohort(recipe: Recipe, candidates: Sequence[Candidate]) -> tuple[CohortMember, ...]:
    """Find the contributions that a recipe means, by ascending id.

    An entry names an organization or its contribution that counts; no entries mean everybody's.

    Raises:
        RecipeInvalidError: an entry names no candidate, or labels, or two name the same organization.
    """
    labelled = next((entry.model for entry in recipe.models if entry.labels is not None), None)
    if labelled is not None:
        msg = f"the recipe names labels of {labelled}; its contribution says which it trained (`push --labels`)"
        raise RecipeInvalidError(msg, model=labelled)
    named = {name: candidate for candidate in candidates for name in (candidate.organization, candidate.contribution)}
    everybody = [(candidate.organization, ModelParameters()) for candidate in candidates]
    members: dict[str, CohortMember] = {}
    for name, parameters in [(entry.model, entry.parameters) for entry in recipe.models] or everybody:
        found = named.get(name)
        if found is None:
            msg = (
                f"{name} has no accepted contribution under the project's current policy, or is one that was replaced; "
                "name organizations, or contributions that `gramfuse contribution list` marks as merged"
            )
            raise RecipeInvalidError(msg, model=name)
        if found.organization in members:
            msg = f"the recipe names two contributions of {found.organization}; an organization counts once"
            raise RecipeInvalidError(msg, organization=found.organization)
        members[found.organization] = CohortMember(found.contribution, found.organization, parameters.weight)
    return tuple(sorted(members.values(), key=lambda member: member.contribution))


def require_allowed(
    recipe: Recipe, cohort: Sequence[CohortMember], policy: Policy, releases: Sequence[Release]
) -> None:
    """Require that the policy allows this merge, alone and beside the ones before it.

    Raises:
        PolicyViolationError: the method is not allowed, the cohort too small, or a weight singles somebody out.
        CohortFrozenError: together with an earlier release it would reveal a member.
    """
    if recipe.merge_method not in policy.methods:
        msg = f"the policy allows {', '.join(policy.methods)}, not {recipe.merge_method}"
        raise PolicyViolationError(msg, method=recipe.merge_method)
    may_estimate = "missing_statistics" in PARAMETERS_OF[recipe.merge_method]
    if may_estimate and recipe.parameters.missing_statistics == "estimate" and policy.missing_statistics != "estimate":
        msg = "the policy wants layers of which somebody lacks statistics averaged; leave out `missing_statistics`"
        raise PolicyViolationError(msg, missing_statistics=recipe.parameters.missing_statistics)
    if len(cohort) < policy.minimum_cohort:
        names = ", ".join(sorted(member.organization for member in cohort)) or "none"
        msg = (
            f"the cohort has {len(cohort)} organizations ({names}), the policy wants at least {policy.minimum_cohort}; "
            "wait for more contributions"
        )
        raise PolicyViolationError(msg, cohort=len(cohort), minimum=policy.minimum_cohort)
    if policy.cohorts == "frozen":
        _require_nobody_singled_out(cohort)
        weights = {member.organization: member.weight for member in cohort}
        for release in releases:
            _require_same_cohort(recipe, weights, release)
            _require_same_labels(cohort, release)
            if not weights.keys().isdisjoint(release.weights):
                _require_same_holders(cohort, release, minimum=policy.minimum_cohort)


def _require_nobody_singled_out(cohort: Sequence[CohortMember]) -> None:
    values = [value for member in cohort for value in values_of(member.weight)]
    if min(values) <= 0 or max(values) > limits.MAX_WEIGHT_RATIO * min(values):
        msg = (
            f"the weights run from {min(values):g} to {max(values):g}; with frozen cohorts every weight is "
            f"above 0 and none is more than {limits.MAX_WEIGHT_RATIO:g} times another, because the merge would show "
            "one organization's own parameters"
        )
        raise PolicyViolationError(msg, smallest=min(values), largest=max(values))


def _require_same_cohort(recipe: Recipe, weights: Mapping[str, Overridable], release: Release) -> None:
    """Two merges that differ by a member, a member's weight, α or another parameter reveal that member.

    What a method reads counts between two merges by that method. λ scales what is known already.
    Where a method drops elements, or weighs each or each direction by itself, some come from one member alone; another
    merge of the same members, which chooses others or none, tells whose.
    """
    if weights.keys().isdisjoint(release.weights):
        return
    before = ", ".join(sorted(release.weights))
    if weights.keys() != release.weights.keys():
        odd = ", ".join(sorted(weights.keys() ^ release.weights.keys()))
        msg = (
            f"job {release.job} merges {before}; a merge that differs by {odd} would reveal them. Merge the same "
            "organizations, or agree on a policy with `cohorts: open`"
        )
        raise CohortFrozenError(msg, job=release.job, differs=sorted(weights.keys() ^ release.weights.keys()))
    changed = sorted(name for name in weights if weights[name] != release.weights[name])
    if changed:
        msg = f"job {release.job} merges {before} with other weights of {', '.join(changed)}; keep the weights"
        raise CohortFrozenError(msg, job=release.job, differs=changed)
    both: tuple[MergeMethod, ...] = (recipe.merge_method, release.recipe.merge_method)
    mine, theirs = recipe.parameters, release.recipe.parameters
    selective = SELECTIVE_METHODS.intersection(both)
    if selective and (len(set(both)) > 1 or (mine.density, mine.seed) != (theirs.density, theirs.seed)):
        msg = (
            f"job {release.job} merges {before} by {release.recipe.merge_method}; beside another merge of the same "
            f"members, what {' and '.join(sorted(selective))} chose would show single members' values. Repeat that "
            "one, or agree on a policy with `cohorts: open`"
        )
        raise CohortFrozenError(msg, job=release.job, differs=["merge_method", "density", "seed"])
    read = [name for name in PARAMETERS_OF[recipe.merge_method] if name != "lambda"]
    if len(set(both)) == 1 and any(getattr(mine, name) != getattr(theirs, name) for name in read):
        had = " and ".join(f"{name} {getattr(theirs, name)}" for name in read)
        msg = (
            f"job {release.job} merges {before} with {had}; another {' or '.join(read)} over the same members would "
            "reveal them"
        )
        raise CohortFrozenError(msg, job=release.job, differs=read)


def _require_same_labels(cohort: Sequence[CohortMember], release: Release) -> None:
    """A row of the head is merged of those that trained it: it too is merged of the same members only."""
    changed = sorted(
        member.organization
        for member in cohort
        if member.organization in release.weights and member.labels != release.labels.get(member.organization)
    )
    if changed:
        msg = (
            f"job {release.job} merges {', '.join(changed)} with other trained labels: beside it, rows of the head "
            "would reveal single members. Push with the labels as they were, or agree on a policy with `cohorts: open`"
        )
        raise CohortFrozenError(msg, job=release.job, differs=changed)


def _require_same_holders(cohort: Sequence[CohortMember], release: Release, *, minimum: int) -> None:
    """A parameter is merged of those that sent it, so it has a cohort too: beside the one before, another reveals who
    came or went. Of fewer than the minimum it is the base's, which says nothing of anybody.
    """
    now = {member.organization: member.tensors for member in cohort}
    same = [names for organization, names in now.items() if names == release.tensors.get(organization)]
    if len(same) == len(now):
        return
    for name in sorted(frozenset[str]().union(*now.values())):
        holders, before = _holders(name, now), _holders(name, release.tensors)
        if min(len(holders), len(before)) >= minimum and holders != before:
            changed = sorted(holders ^ before)
            msg = (
                f"job {release.job} merges {name} of {', '.join(sorted(before))}; a merge that differs there by "
                f"{', '.join(changed)} would reveal them. Push with the same parameters, or agree on a policy with "
                "`cohorts: open`"
            )
            raise CohortFrozenError(msg, job=release.job, differs=changed)


def _holders(name: str, tensors: Mapping[str, frozenset[str]]) -> set[str]:
    return {organization for organization, names in tensors.items() if name in names}
