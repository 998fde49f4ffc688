"""What a search tries next, given how good what it tried was. Pure: no network, no clock, chance from a seed alone.

A strategy is a generator: it yields batches of proposals and is sent their scores, of which more is better.
"""

import itertools
import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pydantic import ValidationError

from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.recipe import PARAMETERS_OF, ModelEntry, ModelParameters, Recipe
from gramfuse_shared.errors import RecipeInvalidError

MOST_PROPOSALS: Final = 1000
"""Merges that a strategy may propose at once: each is a model on the server, and read by every participant."""

_SEARCHED: Final = frozenset({"alpha", "ridge", "lambda", "density", "seed"})
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Member:
    """An organization whose contribution may be merged."""

    organization: str
    contribution: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A merge to try: its recipe, which names contributions by their ids, and what is particular about it, in words."""

    recipe: Recipe
    words: str


Proposals = Generator[tuple[Proposal, ...], Sequence[float], None]


class Strategy(Protocol):
    """Proposes merges of the members of a cohort; `smallest` is the least number of them that the policy merges."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that is varied. Where it names models, these are the cohort; by default, everybody is."""
        ...

    def propose(self, members: Sequence[Member], *, smallest: int) -> Proposals:
        """Yield batches of proposals; take the scores of each."""
        ...


@dataclass(frozen=True, slots=True)
class GridSearch:
    """Every combination of the given values of parameters.

    Attributes:
        recipe: what is varied.
        values: parameters of its method (`alpha`, `ridge`, `lambda`, `density`, `seed`), and the values of each.
    """

    recipe: Recipe
    values: Mapping[str, Sequence[float]]

    def propose(self, members: Sequence[Member], *, smallest: int) -> Proposals:
        """Yield all combinations at once, the last parameter's values changing first.

        Raises:
            RecipeInvalidError: no values, a parameter that the method does not read, or a value that it cannot have.
        """
        _require_cohort(members, smallest)
        _require_searched(self.recipe, self.values)
        count = math.prod(len(values) for values in self.values.values())
        _require_few(count)
        combinations = itertools.product(*(dict.fromkeys(values) for values in self.values.values()))
        yield tuple(
            _proposal(self.recipe, members, dict(zip(self.values, combination, strict=True)))
            for combination in combinations
        )


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Weights drawn uniformly from the simplex, and parameters uniformly from ranges.

    Attributes:
        recipe: what is varied.
        count: how many merges are tried.
        seed: what the drawing begins with; the same seed tries the same.
        ranges: parameters of its method, and the least and the largest value of each.
        weights: whether each merge draws the organizations' weights, which add up to 1.
    """

    recipe: Recipe
    count: int
    seed: int = 0
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weights: bool = True

    def propose(self, members: Sequence[Member], *, smallest: int) -> Proposals:
        """Yield all draws at once.

        Raises:
            RecipeInvalidError: nothing is drawn, or it is no parameter of the method, or a value that it cannot have.
        """
        _require_cohort(members, smallest)
        if not self.weights:
            _require_searched(self.recipe, self.ranges)
        _require_known(self.recipe, self.ranges)
        _require_few(self.count)
        chance = random.Random(self.seed)  # noqa: S311 - a search, no secret
        yield tuple(self._draw(chance, members) for _ in range(self.count))

    def _draw(self, chance: random.Random, members: Sequence[Member]) -> Proposal:
        shares = None
        if self.weights:
            # exponential variables over their sum are uniform on the simplex (Dirichlet with all parameters 1)
            drawn = [chance.expovariate(1.0) for _ in members]
            shares = [max(round(value / sum(drawn), _DIGITS), 10.0**-_DIGITS) for value in drawn]
        values = {name: round(chance.uniform(*ends), _DIGITS) for name, ends in self.ranges.items()}
        return _proposal(self.recipe, members, values, shares)


@dataclass(frozen=True, slots=True)
class GreedySearch:
    """The best small cohort, and then whoever helps it most, until nobody does (the RegMean paper's greedy merging).

    Attributes:
        recipe: by which cohorts are merged.
        start: organizations to begin with; by default the best of all cohorts of the smallest size that the policy
            merges.
        at_most: how large the cohort may become; None: everybody.
    """

    recipe: Recipe
    start: tuple[str, ...] = ()
    at_most: int | None = None

    def propose(self, members: Sequence[Member], *, smallest: int) -> Proposals:
        """Yield the cohorts to begin with, then in each round the best one with each of the others added.

        Raises:
            RecipeInvalidError: there are fewer members than a cohort needs, or `start` names none, or too few.
        """
        _require_cohort(members, smallest)
        most = len(members) if self.at_most is None else min(self.at_most, len(members))
        beginnings = self._beginnings(members, smallest)
        proposals = tuple(_cohort(self.recipe, cohort) for cohort in beginnings)
        scores = yield proposals
        best, score = _best(beginnings, scores)
        while len(best) < most:
            larger = [(*best, member) for member in members if member not in best]
            scores = yield tuple(_cohort(self.recipe, cohort) for cohort in larger)
            found, found_score = _best(larger, scores)
            if found_score <= score:
                return
            best, score = found, found_score

    def _beginnings(self, members: Sequence[Member], smallest: int) -> list[tuple[Member, ...]]:
        if self.start:
            named = {member.organization: member for member in members}
            strangers = [name for name in self.start if name not in named]
            if strangers or len(set(self.start)) < smallest:
                why = f"{strangers[0]} is none of its members" if strangers else f"{smallest} are the fewest"
                msg = f"a greedy search cannot begin with {', '.join(self.start)}: {why}"
                raise RecipeInvalidError(msg)
            return [tuple(named[name] for name in dict.fromkeys(self.start))]
        _require_few(math.comb(len(members), smallest))
        return list(itertools.combinations(members, smallest))


def whole_cohort(recipe: Recipe, members: Sequence[Member]) -> Proposal:
    """Return the merge of all members by the recipe as it is."""
    return _cohort(recipe, members)


def _best(cohorts: Sequence[tuple[Member, ...]], scores: Sequence[float]) -> tuple[tuple[Member, ...], float]:
    place = max(range(len(cohorts)), key=lambda number: scores[number])  # of equals the first
    return cohorts[place], scores[place]


def _cohort(recipe: Recipe, members: Sequence[Member]) -> Proposal:
    return Proposal(_varied(recipe, members, {}, None), "+".join(sorted(member.organization for member in members)))


def _proposal(
    recipe: Recipe,
    members: Sequence[Member],
    values: Mapping[str, float],
    shares: Sequence[float] | None = None,
) -> Proposal:
    words = [f"{name} {value:g}" for name, value in values.items()]
    if shares is not None:
        named = zip(members, shares, strict=True)
        words += [f"{member.organization} {share:.3f}" for member, share in named]
    return Proposal(_varied(recipe, members, values, shares), ", ".join(words))


def _varied(
    recipe: Recipe, members: Sequence[Member], values: Mapping[str, float], shares: Sequence[float] | None
) -> Recipe:
    """Return the recipe of these members, by ascending contribution, so that equal cohorts are equal recipes."""
    given = {entry.model: entry.parameters for entry in recipe.models}
    entries: dict[str, dict[str, Any]] = {}
    for position, member in enumerate(members):
        parameters = given.get(member.organization) or given.get(member.contribution) or ModelParameters()
        if shares is not None:
            parameters = ModelParameters(weight=shares[position])
        entry = ModelEntry(model=member.contribution, parameters=parameters)
        entries[member.contribution] = entry.model_dump(mode="json")
    document = recipe.model_dump(mode="json")
    document["models"] = [entries[contribution] for contribution in sorted(entries)]
    document["parameters"] |= values
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeInvalidError(describe_validation("recipe", error.errors())) from error


def _require_cohort(members: Sequence[Member], smallest: int) -> None:
    if len(members) < smallest:
        msg = f"the policy merges at least {smallest} organizations, and {len(members)} have a contribution that counts"
        raise RecipeInvalidError(msg)


def _require_searched(recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    if not parameters:
        msg = f"nothing is varied; {recipe.merge_method} reads {_read_by(recipe)}"
        raise RecipeInvalidError(msg)
    _require_known(recipe, parameters)


def _require_known(recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    unread = [name for name in parameters if name not in _SEARCHED.intersection(PARAMETERS_OF[recipe.merge_method])]
    if unread:
        msg = f"{unread[0]} is nothing that {recipe.merge_method} reads; that is {_read_by(recipe)}"
        raise RecipeInvalidError(msg)


def _read_by(recipe: Recipe) -> str:
    return ", ".join(name for name in PARAMETERS_OF[recipe.merge_method] if name in _SEARCHED) or "nothing to vary"


def _require_few(count: int) -> None:
    if not 1 <= count <= MOST_PROPOSALS:
        msg = f"{count} merges would be tried at once; from 1 to {MOST_PROPOSALS} are"
        raise RecipeInvalidError(msg)
