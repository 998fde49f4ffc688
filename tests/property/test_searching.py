"""What strategies propose, whatever the scores: products, draws of a simplex, and curves that never fall."""

import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramfuse.searching.strategies import GreedySearch, GridSearch, Member, Proposal, RandomSearch, whole_cohort
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import RecipeInvalidError

MEMBERS = tuple(Member(name, f"{number:064x}") for number, name in enumerate(("acme", "globex", "initech", "hooli"), 7))
REGMEAN = Recipe(merge_method="regmean")
TIES = Recipe(merge_method="ties")


def run(strategy: Any, score: Callable[[Proposal], float], members=MEMBERS, smallest=2) -> list[list[Proposal]]:
    """Let a strategy run to its end; return its batches."""
    proposing = strategy.propose(members, smallest=smallest)
    batches = [next(proposing)]
    while True:
        try:
            batches.append(proposing.send([score(proposal) for proposal in batches[-1]]))
        except StopIteration:
            return [list(batch) for batch in batches]


def zero(_proposal: Proposal) -> float:
    return 0.0


def organizations(proposal: Proposal) -> frozenset[str]:
    named = {member.contribution: member.organization for member in MEMBERS}
    return frozenset(named[entry.model] for entry in proposal.recipe.models)


def arbitrary(seed: int) -> Callable[[Proposal], float]:
    """A score of a cohort that follows no rule."""
    return lambda proposal: zlib.crc32(f"{seed} {sorted(organizations(proposal))}".encode()) / 2**32


# --- grid ------------------------------------------------------------------------------------------------------------


@given(
    alphas=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=1, max_size=6),
    ridges=st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0]), min_size=1, max_size=4),
)
def test_a_grid_is_every_combination_once_each_of_everybody(alphas, ridges):
    (batch,) = run(GridSearch(REGMEAN, {"alpha": alphas, "ridge": ridges}), zero)
    tried = [(one.recipe.parameters.alpha, one.recipe.parameters.ridge) for one in batch]
    assert len(tried) == len(set(tried))
    assert set(tried) == set(itertools.product(alphas, ridges))
    assert {organizations(one) for one in batch} == {organizations(whole_cohort(REGMEAN, MEMBERS))}
    assert len({one.words for one in batch}) == len(batch)


def test_a_grid_keeps_what_it_does_not_vary_and_the_weights_that_the_recipe_names():
    document = {"merge_method": "ties", "parameters": {"lambda": 0.4}, "out_dtype": "bfloat16"}
    models = [{"model": "globex", "parameters": {"weight": 3.0}}, {"model": MEMBERS[0].contribution}]
    (batch,) = run(GridSearch(Recipe.model_validate(document | {"models": models}), {"density": [0.2]}), zero)
    (one,) = batch
    assert (one.recipe.parameters.lambda_, one.recipe.parameters.density, one.recipe.out_dtype) == (
        0.4,
        0.2,
        "bfloat16",
    )
    weights = {entry.model: entry.parameters.weight for entry in one.recipe.models}
    assert weights[MEMBERS[1].contribution] == 3.0
    assert weights[MEMBERS[0].contribution] == 1.0
    assert one.words == "density 0.2"


@pytest.mark.parametrize(
    ("recipe", "values", "message"),
    [
        (REGMEAN, {}, "nothing is varied; regmean reads alpha, ridge"),
        (REGMEAN, {"lambda": [1]}, "lambda is nothing that regmean reads"),
        (REGMEAN, {"alpha": [0.5, 1.5]}, "alpha lies between 0 and 1"),
        (REGMEAN, {"alpha": []}, "0 merges would be tried"),
        (REGMEAN, {"alpha": [0.1] * 40, "ridge": [0.1] * 40}, "1600 merges would be tried"),
        (Recipe(merge_method="linear"), {"alpha": [0.5]}, "nothing to vary"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_is(recipe, values, message):
    with pytest.raises(RecipeInvalidError, match=message):
        run(GridSearch(recipe, values), zero)


@pytest.mark.parametrize(
    "strategy", [GridSearch(REGMEAN, {"alpha": [0.5]}), RandomSearch(REGMEAN, 2), GreedySearch(REGMEAN)]
)
def test_fewer_members_than_the_policy_merges_are_refused(strategy):
    with pytest.raises(RecipeInvalidError, match="at least 3 organizations, and 2 have"):
        run(strategy, zero, members=MEMBERS[:2], smallest=3)


# --- random ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), count=st.integers(1, 20), low=st.floats(0, 1), width=st.floats(0, 1))
def test_draws_lie_on_the_simplex_and_within_the_ranges_and_a_seed_draws_the_same(seed, count, low, width):
    high = min(low + width, 1.0)
    strategy = RandomSearch(REGMEAN, count, seed=seed, ranges={"alpha": (low, high)})
    (batch,) = run(strategy, zero)
    assert len(batch) == count
    for one in batch:
        weights = [entry.parameters.weight for entry in one.recipe.models]
        assert len(weights) == len(MEMBERS)
        assert math.isclose(sum(weights), 1.0, abs_tol=1e-5)
        assert min(weights) > 0
        assert low - 1e-6 <= one.recipe.parameters.alpha <= high + 1e-6
    assert [batch] == run(strategy, zero)
    other = RandomSearch(REGMEAN, count, seed=seed + 1)
    assert run(other, zero)[0] != batch


def test_weights_are_uniform_on_the_simplex():
    """Each coordinate of Dirichlet(1, 1, 1, 1) has mean 1/4 and exceeds a half with probability 1/8."""
    (batch,) = run(RandomSearch(REGMEAN, 1000, seed=5), zero)
    for position in range(len(MEMBERS)):
        drawn = [one.recipe.models[position].parameters.weight for one in batch]
        assert abs(sum(drawn) / len(drawn) - 0.25) < 0.02
        assert abs(sum(weight > 0.5 for weight in drawn) / len(drawn) - 0.125) < 0.04


def test_a_random_search_may_leave_the_weights_alone_but_not_everything():
    strategy = RandomSearch(TIES, 3, ranges={"lambda": (0.1, 1.0), "density": (0.1, 1.0)}, weights=False)
    (batch,) = run(strategy, zero)
    assert {entry.parameters.weight for one in batch for entry in one.recipe.models} == {1.0}
    assert len({one.recipe.parameters.density for one in batch}) == 3
    with pytest.raises(RecipeInvalidError, match="nothing is varied"):
        run(RandomSearch(TIES, 3, weights=False), zero)
    with pytest.raises(RecipeInvalidError, match="0 merges"):
        run(RandomSearch(TIES, 0), zero)


# --- greedy ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), smallest=st.integers(2, 4))
def test_a_greedy_score_never_falls_and_each_round_adds_one_to_the_best_of_the_one_before(seed, smallest):
    score = arbitrary(seed)
    rounds = run(GreedySearch(REGMEAN), score, smallest=smallest)
    assert {organizations(one) for one in rounds[0]} == {
        frozenset(member.organization for member in cohort) for cohort in itertools.combinations(MEMBERS, smallest)
    }
    best = [max(batch, key=score) for batch in rounds]
    for before, batch, accepted in zip(best, rounds[1:], best[1:], strict=False):
        grown = {organizations(before) | {member.organization} for member in MEMBERS} - {organizations(before)}
        assert {organizations(one) for one in batch} == grown
        if accepted is not best[-1]:
            assert score(accepted) > score(before)
    # it stops because nobody is left, or because nobody helped
    if len(rounds) > 1 and score(best[-1]) <= score(best[-2]):
        assert len(organizations(best[-1])) <= len(MEMBERS)
    else:
        assert organizations(best[-1]) == organizations(whole_cohort(REGMEAN, MEMBERS))


@given(values=st.lists(st.floats(-1, 1).filter(lambda value: abs(value) > 1e-3), min_size=4, max_size=4))
def test_where_organizations_help_independently_it_finds_exactly_those_that_help(values):
    worth = {member.organization: value for member, value in zip(MEMBERS, values, strict=True)}

    def score(proposal: Proposal) -> float:
        return sum(worth[name] for name in organizations(proposal))

    batches = run(GreedySearch(REGMEAN), score)
    found = max((one for batch in batches for one in batch), key=score)
    cohorts = [cohort for size in (2, 3, 4) for cohort in itertools.combinations(worth.values(), size)]
    assert score(found) == pytest.approx(max(sum(cohort) for cohort in cohorts))


def test_it_may_begin_with_named_organizations_and_end_at_a_size():
    rounds = run(GreedySearch(REGMEAN, start=("hooli", "acme"), at_most=3), arbitrary(3))
    assert [organizations(one) for one in rounds[0]] == [{"hooli", "acme"}]
    assert rounds[0][0].words == "acme+hooli"
    assert len(rounds) == 2
    assert run(GreedySearch(REGMEAN, at_most=2), arbitrary(3)) == rounds_of_pairs()


def rounds_of_pairs() -> list[list[Proposal]]:
    return [[whole_cohort(REGMEAN, pair) for pair in itertools.combinations(MEMBERS, 2)]]


@pytest.mark.parametrize(
    ("start", "why"), [(("nobody", "acme"), "nobody is none of its members"), (("acme", "acme"), "2 are the fewest")]
)
def test_it_cannot_begin_with_strangers_or_too_few(start: Sequence[str], why: str):
    with pytest.raises(RecipeInvalidError, match=why):
        run(GreedySearch(REGMEAN, start=tuple(start)), zero)


def test_equal_cohorts_are_equal_recipes_however_they_came_about():
    one, other = (whole_cohort(REGMEAN, cohort) for cohort in (MEMBERS, MEMBERS[::-1]))
    assert one == other
