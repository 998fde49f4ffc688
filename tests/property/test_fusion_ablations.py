"""The RegMean paper's other ways to keep a Gram matrix in bounds: add to the diagonal, take the diagonal alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.fusion_oracle import Contributor, least_squares, make_contributors, merge, relative_error, weighted_mean

SEEDS = st.integers(0, 2**20)


@given(
    seed=SEEDS,
    width=st.sampled_from([3, 40, 150]),
    rows_per_feature=st.sampled_from([1, 5]),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    ridge=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    normalize=st.sampled_from(["equal", "rows"]),
)
def test_a_ridge_adds_to_every_diagonal_its_own_mean(seed, width, rows_per_feature, alpha, ridge, normalize):
    base, contributors = make_contributors(
        seed, members=3, width=width, height=7, rows=rows_per_feature * width, scales=False
    )
    merged, solution = merge(contributors, alpha=alpha, normalize=normalize, reference=base, ridge=ridge)
    exact = least_squares(contributors, alpha=alpha, normalize=normalize, ridge=ridge)
    assert relative_error(merged, exact) < 2e-6
    assert solution.diagnosis.fallback == "none"


@given(seed=SEEDS, exponent=st.integers(-3, 3))
def test_a_ridge_has_no_unit(seed, exponent):
    """Relative to the mean of the diagonal, it means the same however large activations are."""
    _, contributors = make_contributors(seed, members=3, width=20, height=7, rows=30, scales=False)
    larger = [Contributor(c.weight, c.rows * 10.0**exponent, c.share) for c in contributors]
    one, other = (merge(cohort, alpha=1.0, ridge=0.1)[0] for cohort in (contributors, larger))
    assert relative_error(other, one) < 1e-5


@given(seed=SEEDS)
def test_a_large_ridge_ends_at_the_mean_by_weight_and_energy(seed):
    _, contributors = make_contributors(seed, members=3, width=20, height=7, rows=100, scales=False)
    weighed = [
        Contributor(c.weight, c.rows, c.share * float(c.rows.double().square().sum() / len(c.rows)))
        for c in contributors
    ]
    merged, _ = merge(contributors, alpha=0.9, ridge=1e6)
    assert relative_error(merged, weighted_mean(weighed)) < 1e-5


def test_with_a_ridge_a_feature_that_nobody_used_is_a_mean_by_energy_not_left_to_the_plain_one():
    _, contributors = make_contributors(1, members=2, width=6, height=3, rows=60, scales=False)
    for index, contributor in enumerate(contributors):
        contributor.rows[:, 2] = 0.0
        contributor.rows.mul_(1.0 + index)
    merged, solution = merge(contributors, alpha=1.0, ridge=0.1)
    assert solution.diagnosis.dead_features == 0
    assert relative_error(merged, least_squares(contributors, alpha=1.0, ridge=0.1)) < 2e-6
    plain, solution = merge(contributors, alpha=0.9)
    assert solution.diagnosis.dead_features == 1
    assert relative_error(plain[:, 2], weighted_mean(contributors)[:, 2]) < 1e-6


@given(seed=SEEDS)
def test_no_ridge_changes_no_bit(seed):
    _, contributors = make_contributors(seed, members=3, width=20, height=7, rows=100)
    assert torch.equal(merge(contributors, alpha=0.9)[0], merge(contributors, alpha=0.9, ridge=0.0)[0])


@given(seed=SEEDS)
def test_alpha_zero_is_the_diagonal_alone_and_weighs_every_column_by_itself(seed):
    _, contributors = make_contributors(seed, members=3, width=20, height=7, rows=100)
    energy = [c.share * c.rows.double().square().sum(0) / len(c.rows) for c in contributors]
    exact = sum(c.weight.double() * e for c, e in zip(contributors, energy, strict=True)) / sum(energy)
    assert relative_error(merge(contributors, alpha=0.0)[0], exact) < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_where_statistics_are_zero_a_ridge_is_too(alpha):
    """No energy, so no ridge either: the average stays, as without one."""
    _, contributors = make_contributors(2, members=2, width=6, height=3, rows=10)
    silent = [Contributor(c.weight, torch.zeros_like(c.rows), c.share) for c in contributors]
    merged, _ = merge(silent, alpha=alpha, ridge=0.5)
    assert relative_error(merged, weighted_mean(silent)) < 1e-6
