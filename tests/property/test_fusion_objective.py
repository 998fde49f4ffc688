"""What a merge gains, and how well conditioned it was, against the definitions in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_shared.fusion import packing, symmetric
from gramfuse_shared.fusion.cholesky import Factor
from gramfuse_shared.fusion.descent import DescendedPrecision
from gramfuse_shared.fusion.objective import FOLLOWED_ROWS, Objective
from gramfuse_shared.fusion.precision import GramPrecision, ScalarPrecision
from gramfuse_shared.fusion.solve import Accumulator, Solution
from support.fusion_oracle import Contributor, make_contributors, weighted_mean

SEEDS = st.integers(0, 2**16)
WIDTHS = st.integers(1, 150)
ALPHAS = st.sampled_from([0.1, 0.5, 0.9, 1.0])


def follow(
    contributors: list[Contributor],
    base: torch.Tensor,
    rows: torch.Tensor,
    *,
    alpha: float,
    ridge: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, Solution]:
    """Merge around the base and follow these rows."""
    accumulator = Accumulator(tuple(base.shape), dtype=dtype, objective=Objective(rows))
    for contributor in contributors:
        gram = contributor.gram()
        scale = contributor.share / gram.rows
        precision = GramPrecision(gram.packed, gram.width, scale=scale, alpha=alpha, ridge=ridge)
        accumulator.add(contributor.weight.to(dtype) - base.to(dtype), precision, contributor.share)
    solution = accumulator.solve()
    merged = base.double() if solution.delta is None else base.double() + solution.delta.double()
    return merged, solution


def objective(contributors: list[Contributor], merged: torch.Tensor, rows: torch.Tensor) -> float:
    """Σ cᵢ/nᵢ ‖Xᵢ(W − Wᵢ)ᵀ‖² of some rows of W, RegMean eq. 1, from the rows of Xᵢ themselves."""
    return sum(
        c.share / len(c.rows) * float((c.rows.double() @ (merged - c.weight.double())[rows].T).square().sum())
        for c in contributors
    )


def gained(contributors: list[Contributor], merged: torch.Tensor, rows: torch.Tensor) -> float:
    return 1 - objective(contributors, merged, rows) / objective(contributors, weighted_mean(contributors), rows)


@given(SEEDS, st.integers(2, 5), WIDTHS, st.integers(1, 30), ALPHAS, st.sampled_from([0.0, 0.1, 3.0]))
def test_what_is_gained_is_the_definition_on_the_rows_that_are_followed(seed, members, width, height, alpha, ridge):
    base, contributors = make_contributors(seed, members=members, width=width, height=height, rows=3 * width + 5)
    rows = torch.arange(height)[torch.randperm(height, generator=torch.Generator().manual_seed(seed))[:FOLLOWED_ROWS]]
    merged, solution = follow(contributors, base, rows, alpha=alpha, ridge=ridge)
    assert solution.diagnosis.gained == pytest.approx(gained(contributors, merged, rows), abs=1e-5)


@given(SEEDS, st.integers(2, 4), st.integers(2, 150), ALPHAS)
def test_with_all_rows_followed_it_is_that_of_the_layer_also_in_float32(seed, members, width, alpha):
    base, contributors = make_contributors(seed, members=members, width=width, height=9, rows=4 * width)
    rows = torch.arange(9)
    merged, solution = follow(contributors, base, rows, alpha=alpha, dtype=torch.float32)
    assert solution.diagnosis.gained == pytest.approx(gained(contributors, merged, rows), abs=2e-3)


@given(SEEDS, st.integers(2, 60), ALPHAS)
def test_least_squares_without_additions_never_fits_worse_than_the_average(seed, width, alpha):
    base, contributors = make_contributors(seed, members=3, width=width, height=4, rows=3 * width)
    _, solution = follow(contributors, base, torch.arange(4), alpha=1.0)
    assert -1e-9 <= solution.diagnosis.gained <= 1 + 1e-9


@given(SEEDS, st.integers(1, 60), ALPHAS, st.sampled_from([torch.float32, torch.float64]))
def test_one_contribution_gains_nothing(seed, width, alpha, dtype):
    base, contributors = make_contributors(seed, members=1, width=width, height=5, rows=3 * width)
    _, solution = follow(contributors, base, torch.arange(5), alpha=alpha, dtype=dtype)
    assert solution.diagnosis.gained == 0.0


@given(SEEDS, st.integers(1, 60), ALPHAS)
def test_equal_inputs_gain_nothing(seed, width, alpha):
    base, contributors = make_contributors(seed, members=3, width=width, height=5, rows=3 * width)
    same = [Contributor(c.weight, contributors[0].rows, c.share) for c in contributors]
    _, solution = follow(same, base, torch.arange(5), alpha=alpha)
    assert solution.diagnosis.gained == pytest.approx(0.0, abs=1e-6)


def test_without_differences_there_is_nothing_to_gain():
    accumulator = Accumulator((2, 3), dtype=torch.float32, objective=Objective(torch.arange(2)))
    accumulator.add(None, GramPrecision(packing.pack(torch.eye(3)), 3), 1.0)
    assert accumulator.solve().diagnosis.gained == 0.0


def test_a_fit_of_everybody_gains_all_of_it():
    """Two members that read different features: the merge is each one's own where it reads."""
    first, second = (torch.diag(torch.tensor(values)) for values in ([1.0, 0.0], [0.0, 1.0]))
    accumulator = Accumulator((1, 2), dtype=torch.float64, objective=Objective(torch.arange(1)))
    for gram, difference in ((first, [[3.0, 9.0]]), (second, [[7.0, 5.0]])):
        accumulator.add(torch.tensor(difference, dtype=torch.float64), GramPrecision(packing.pack(gram), 2), 1.0)
    solution = accumulator.solve()
    assert solution.delta.tolist() == [[3.0, 5.0]]
    assert solution.diagnosis.gained == pytest.approx(1.0)


def test_what_holds_nothing_off_the_diagonal_says_nothing_of_the_objective():
    base, contributors = make_contributors(0, members=2, width=6, height=3, rows=20)
    _, solution = follow(contributors, base, torch.arange(3), alpha=0.0)
    assert solution.diagnosis.gained is None
    scalars = Accumulator((3, 6), dtype=torch.float64, objective=Objective(torch.arange(3)))
    for contributor in contributors:
        scalars.add(contributor.weight.double(), ScalarPrecision(1.0), 1.0)
    assert scalars.solve().diagnosis.gained is None


def test_a_descent_that_overshoots_has_lost():
    width = 4
    accumulator = Accumulator((1, width), dtype=torch.float64, objective=Objective(torch.arange(1)))
    for sign in (1.0, 1.1):
        gram = packing.pack(torch.eye(width))
        accumulator.add(torch.full((1, width), sign, dtype=torch.float64), DescendedPrecision(gram, width), 1.0)
    solution = accumulator.solve()  # near the sum of two nearly equal differences, where their mean would fit
    assert solution.diagnosis.gained < -100


@given(SEEDS, st.integers(1, 300), st.integers(1, 5))
def test_few_rows_times_a_symmetric_matrix(seed, width, count):
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(width, width, generator=generator, dtype=torch.float64)
    full = full + full.T
    lower = torch.full((width, width), torch.nan, dtype=torch.float64)
    symmetric.expand(packing.pack(full), lower)
    left = torch.randn(count, width, generator=generator, dtype=torch.float64)
    assert torch.allclose(symmetric.times_few(left, lower), left @ full, atol=1e-10)


@given(SEEDS, st.integers(1, 300), st.floats(0.0, 2.0), ALPHAS)
def test_the_bound_is_below_the_condition_and_not_far_below(seed, width, decades, alpha):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -decades, width, dtype=torch.float64)
    rows = torch.randn(4 * width + 4, width, generator=generator, dtype=torch.float64) * scales
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    gram = (rows @ mixing).T @ (rows @ mixing)
    gram = alpha * gram + (1 - alpha) * gram.diagonal().diag()
    scale = gram.diagonal().rsqrt()
    scaled = gram * scale * scale[:, None]
    spectrum = torch.linalg.eigvalsh(scaled)
    condition = float(spectrum[-1] / spectrum[0])
    factor = Factor.of(scaled.clone())
    bound = factor.bound_condition(smallest=factor.estimate_smallest_eigenvalue())
    assert condition / 10 <= bound <= condition * (1 + 1e-6)
    by_pivot = factor.bound_condition(smallest=factor.smallest_pivot)
    assert condition / (30 if alpha < 1 else 1e5) <= by_pivot <= condition * (1 + 1e-6)


def test_the_condition_of_a_correlation_is_found():
    matrix = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)  # eigenvalues 1.8 and 0.2
    factor = Factor.of(matrix.clone())
    bound = factor.bound_condition(smallest=factor.estimate_smallest_eigenvalue())
    assert bound == pytest.approx(9.0, rel=0.01)
    assert factor.bound_condition(smallest=0.0) is None
