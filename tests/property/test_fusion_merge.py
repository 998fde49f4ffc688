"""A merge is what its definition says: least squares on everybody's rows, in float64, straight from the rows."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_shared.fusion.precision import DiagonalPrecision, ScalarPrecision
from gramfuse_shared.fusion.solve import Accumulator
from support.fusion_oracle import Contributor, least_squares, make_contributors, merge, relative_error, ridge_solution

SEEDS = st.integers(0, 2**20)
NORMALIZE = st.sampled_from(["equal", "rows"])


@given(
    seed=SEEDS,
    members=st.integers(2, 5),
    width=st.sampled_from([3, 40, 128, 150]),
    rows_per_feature=st.sampled_from([1, 5, 20]),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    normalize=NORMALIZE,
    scales=st.booleans(),
)
def test_a_merge_equals_least_squares_on_the_pooled_rows(
    seed, members, width, rows_per_feature, alpha, normalize, scales
):
    base, contributors = make_contributors(
        seed, members=members, width=width, height=17, rows=rows_per_feature * width, scales=scales
    )
    merged, solution = merge(contributors, alpha=alpha, normalize=normalize, reference=base)
    assert relative_error(merged, least_squares(contributors, alpha=alpha, normalize=normalize)) < 2e-6
    assert solution.diagnosis.fallback == "none"


@given(seed=SEEDS, width=st.sampled_from([3, 40, 150]), normalize=NORMALIZE)
def test_with_alpha_one_it_still_does_where_the_rows_determine_the_answer(seed, width, normalize):
    base, contributors = make_contributors(seed, members=3, width=width, height=9, rows=8 * width, scales=False)
    pooled = sum(contributor.rows.double().T @ contributor.rows.double() for contributor in contributors)
    assert torch.linalg.cond(pooled) < 1e4
    merged, solution = merge(contributors, alpha=1.0, normalize=normalize, reference=base)
    assert relative_error(merged, least_squares(contributors, alpha=1.0, normalize=normalize)) < 2e-6
    assert solution.diagnosis.fallback == "none"


@given(seed=SEEDS, alpha=st.sampled_from([0.0, 0.9, 1.0]))
def test_the_reference_point_does_not_matter(seed, alpha):
    base, contributors = make_contributors(seed, members=3, width=30, height=5, rows=300, scales=False)
    around_base, _ = merge(contributors, alpha=alpha, reference=base)
    around_first, _ = merge(contributors, alpha=alpha)
    assert relative_error(around_base, around_first) < 2e-6


@given(seed=SEEDS, alpha=st.floats(0, 1), width=st.sampled_from([5, 130]), rows=st.integers(1, 50))
def test_one_contribution_merges_to_itself_exactly(seed, alpha, width, rows):
    _, (contributor,) = make_contributors(seed, members=1, width=width, height=4, rows=rows)
    merged, _ = merge([contributor], alpha=alpha)
    assert torch.equal(merged, contributor.weight)


@given(seed=SEEDS, alpha=st.floats(0, 1), rows=st.integers(1, 200))
def test_equal_weights_merge_to_themselves(seed, alpha, rows):
    base, contributors = make_contributors(seed, members=3, width=20, height=4, rows=rows)
    same = [replace(contributor, weight=contributors[0].weight) for contributor in contributors]
    merged, _ = merge(same, alpha=alpha)
    assert torch.equal(merged, contributors[0].weight)
    around_base, _ = merge(same, alpha=alpha, reference=base)
    assert relative_error(around_base, contributors[0].weight) < 2e-6


@given(seed=SEEDS, normalize=NORMALIZE)
def test_alpha_zero_weighs_each_input_feature_by_its_energy(seed, normalize):
    base, contributors = make_contributors(seed, members=3, width=25, height=6, rows=100)
    merged, _ = merge(contributors, alpha=0.0, normalize=normalize, reference=base)
    energies = [
        contributor.rows.double().square().sum(0)
        * contributor.share
        / (1 if normalize == "rows" else len(contributor.rows))
        for contributor in contributors
    ]
    expected = sum(
        contributor.weight.double() * energy for contributor, energy in zip(contributors, energies, strict=True)
    ) / sum(energies)
    assert relative_error(merged, expected) < 2e-6


@given(seed=SEEDS)
def test_equal_statistics_make_regmean_the_weighted_mean(seed):
    base, contributors = make_contributors(seed, members=3, width=25, height=6, rows=200)
    same = [replace(contributor, rows=contributors[0].rows) for contributor in contributors]
    merged, _ = merge(same, alpha=0.9, reference=base)
    mean, _ = merge(same, alpha=0.9, reference=base, method="linear")
    assert relative_error(merged, mean) < 2e-6


@given(seed=SEEDS, members=st.integers(1, 5))
def test_the_linear_method_is_the_weighted_mean(seed, members):
    base, contributors = make_contributors(seed, members=members, width=7, height=6, rows=1)
    merged, _ = merge(contributors, alpha=0.9, reference=base, method="linear")
    total = sum(contributor.share for contributor in contributors)
    expected = sum(contributor.weight.double() * contributor.share for contributor in contributors) / total
    assert relative_error(merged, expected) < 2e-7


@given(seed=SEEDS, members=st.integers(1, 4))
def test_an_elementwise_precision_weighs_every_element_by_itself(seed, members):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(4, 6, generator=generator) for _ in range(members)]
    fishers = [torch.rand(4, 6, generator=generator) for _ in range(members)]
    for fisher in fishers:
        fisher[0] = 0.0  # nobody knows anything about the first row: the mean
    accumulator = Accumulator[DiagonalPrecision]((4, 6), dtype=torch.float32)
    for value, fisher in zip(values, fishers, strict=True):
        accumulator.add(value - values[0], DiagonalPrecision(fisher), 1.0)
    merged = values[0] + accumulator.solve().delta
    weighted = sum(value.double() * fisher for value, fisher in zip(values, fishers, strict=True))
    expected = weighted / sum(fishers).clamp(min=1e-30)
    expected[0] = sum(value.double() for value in values)[0] / members
    assert relative_error(merged, expected) < 2e-6


@given(seed=SEEDS)
def test_a_contribution_without_weight_is_refused_by_the_accumulator(seed):
    with pytest.raises(ValueError, match="leave the contribution out"):
        Accumulator[ScalarPrecision]((2,), dtype=torch.float32).add(torch.zeros(2), ScalarPrecision(0.0), 0.0)


@given(seed=SEEDS, dead=st.integers(1, 10), alpha=st.sampled_from([0.0, 0.9, 1.0]))
def test_a_feature_that_nobody_uses_keeps_the_mean_and_the_others_do_not_notice(seed, dead, alpha):
    base, contributors = make_contributors(seed, members=3, width=30, height=5, rows=400, scales=False)
    muted = []
    for contributor in contributors:
        rows = contributor.rows.clone()
        rows[:, :dead] = 0.0
        muted.append(replace(contributor, rows=rows))
    merged, solution = merge(muted, alpha=alpha, reference=base)
    mean, _ = merge(muted, alpha=alpha, reference=base, method="linear")
    assert solution.diagnosis.dead_features == dead
    assert solution.diagnosis.fallback == "none"
    assert relative_error(merged[:, :dead], mean[:, :dead]) < 2e-7
    alive = [Contributor(c.weight[:, dead:], c.rows[:, dead:], c.share) for c in muted]
    assert relative_error(merged[:, dead:], least_squares(alive, alpha=alpha)) < 2e-6


@given(seed=SEEDS, rows=st.integers(1, 9), members=st.integers(2, 3))
def test_too_few_rows_give_the_ridge_toward_the_mean_and_never_explode(seed, rows, members):
    """With α = 1 and fewer rows than features the published inverse returns weights thousands of times too large."""
    width = 40
    base, contributors = make_contributors(seed, members=members, width=width, height=5, rows=rows, scales=False)
    merged, solution = merge(contributors, alpha=1.0, reference=base)
    mean, _ = merge(contributors, alpha=1.0, reference=base, method="linear")
    apart = max(float((c.weight - mean).norm()) for c in contributors)
    assert solution.diagnosis.fallback == "ridge"
    # the statistics' own float32 rounding, 1e-7, passes through a ridge of 1e-5
    assert float((merged - ridge_solution(contributors, mean)).norm()) < 0.2 * apart
    # and where no row ever looked, in the metric in which every feature has energy 1, the mean stays
    scale = sum(c.rows.double().square().sum(0) * c.share / len(c.rows) for c in contributors).rsqrt()
    seen = torch.cat([contributor.rows for contributor in contributors]).double() * scale
    unseen = torch.eye(width, dtype=torch.float64) - torch.linalg.pinv(seen) @ seen
    correction = (merged - mean).double() / scale
    assert float((correction @ unseen).norm()) < 0.2 * float(correction.norm())


@given(seed=SEEDS, rank=st.integers(1, 5))
def test_a_factorization_that_succeeds_on_a_rank_deficient_matrix_is_not_believed(seed, rank):
    """Rows that span fewer dimensions than there are features: what pivots remain are rounding noise."""
    generator = torch.Generator().manual_seed(seed)
    contributors = []
    for _ in range(2):
        rows = torch.randn(500, rank, generator=generator) @ torch.randn(rank, 6, generator=generator)
        contributors.append(Contributor(torch.randn(3, 6, generator=generator), rows))
    shared = contributors[0].rows
    contributors = [replace(contributor, rows=shared) for contributor in contributors]
    merged, solution = merge(contributors, alpha=1.0)
    apart = float((contributors[0].weight - contributors[1].weight).norm())
    mean = (contributors[0].weight + contributors[1].weight) / 2
    assert solution.diagnosis.fallback == "ridge"
    # equal statistics: the mean is the exact answer in every direction, seen or not
    assert float((merged - mean).norm()) < 1e-3 * apart
