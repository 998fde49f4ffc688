"""The solver's guards, one by one."""

import pytest
import torch

from gramfuse_shared.fusion import least_squares, packing
from gramfuse_shared.fusion.least_squares import BELIEVED_FROM
from gramfuse_shared.fusion.methods import METHODS
from gramfuse_shared.fusion.methods.method import Gram, MethodSettings
from gramfuse_shared.fusion.precision import DiagonalPrecision, GramPrecision, ScalarPrecision
from gramfuse_shared.fusion.solve import Accumulator, Sums, solve_sums
from gramfuse_shared.fusion.workspace import Workspace


def solve(matrix: torch.Tensor, products: torch.Tensor, mean: torch.Tensor | None = None):
    mean = torch.zeros_like(products) if mean is None else mean
    return least_squares.solve(matrix.clone(), products.clone(), mean.clone(), Workspace())


def times(precision, difference: torch.Tensor) -> torch.Tensor:
    """D P, as a sum of one member has it."""
    sums = precision.begin(tuple(difference.shape), difference.dtype, Workspace())
    sums.add(precision, difference)
    return sums.products


def test_a_well_conditioned_matrix_is_solved_as_it_is():
    matrix = torch.tensor([[4.0, 1.0], [1.0, 9.0]], dtype=torch.float64)
    residual = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    solution, diagnosis = solve(matrix, residual)
    assert torch.allclose(solution @ matrix, residual, atol=1e-14)
    assert diagnosis.fallback == "none"
    assert diagnosis.smallest_pivot == pytest.approx(1 - 1 / 36)


def test_features_of_very_different_sizes_are_as_well_conditioned_as_their_correlations():
    scale = torch.tensor([1e-9, 1.0, 1e9])
    matrix = torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]]) * scale * scale[:, None]
    answer = torch.tensor([[3.0, -2.0, 1.0]]) / scale
    solution, diagnosis = solve(matrix, answer @ matrix)
    assert diagnosis.fallback == "none"
    assert torch.allclose(solution, answer, rtol=1e-5)


def test_a_cholesky_that_succeeds_with_a_pivot_of_rounding_noise_is_not_believed():
    correlation = 1 - 1e-7  # the squared pivot is 2e-7: positive, and nothing but the input's rounding
    matrix = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    assert int(torch.linalg.cholesky_ex(matrix).info) == 0
    residual = torch.tensor([[1e-7, -1e-7]], dtype=torch.float64)  # noise along the direction that nobody saw
    solution, diagnosis = solve(matrix, residual)
    assert diagnosis.fallback == "ridge"
    assert diagnosis.smallest_pivot is not None
    assert 0 < diagnosis.smallest_pivot < BELIEVED_FROM
    assert float(torch.linalg.solve(matrix, residual.T).abs().max()) > 0.9  # what belief would have cost
    assert float(solution.abs().max()) < 0.02


def test_pivots_that_all_look_well_do_not_hide_a_singular_matrix():
    """Noise of 1e-7 in the last of three nearly dependent features, behind a pivot of 2e-4, is a pivot of 1e-3."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.014], [0.0, 1.0]], dtype=torch.float64)  # rank 2 in 3 dimensions
    rows = rows / rows.norm(dim=1, keepdim=True)
    matrix = rows @ rows.T
    matrix[2, 2] += 1e-3 * 1e-7  # the exact pivot is 0
    noise = torch.tensor([[0.0, 0.0, 7e-7], [0.0, 0.0, -7e-7], [7e-7, -7e-7, 0.0]], dtype=torch.float64)
    noisy = matrix + noise
    noisy.diagonal().fill_(1.0)
    pivots = torch.linalg.cholesky_ex(noisy).L.diagonal().square()
    assert int(torch.linalg.cholesky_ex(noisy).info) == 0
    assert float(pivots.min()) > BELIEVED_FROM
    assert float(torch.linalg.eigvalsh(noisy)[0]) < BELIEVED_FROM
    _, diagnosis = solve(noisy, torch.ones(1, 3, dtype=torch.float64))
    assert diagnosis.fallback == "ridge"


@pytest.mark.parametrize("width", [1, 2, 40, 130])
def test_the_estimate_of_the_smallest_eigenvalue_is_close_from_above(width):
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(width + 2, width, generator=generator, dtype=torch.float64)
    matrix = rows.T @ rows
    scale = matrix.diagonal().rsqrt()
    _, diagnosis = solve(matrix * scale * scale[:, None], torch.ones(1, width, dtype=torch.float64))
    exact = float(torch.linalg.eigvalsh(matrix * scale * scale[:, None])[0])
    assert diagnosis.smallest_eigenvalue is not None
    assert exact * (1 - 1e-6) <= diagnosis.smallest_eigenvalue <= 3 * exact


def test_an_indefinite_matrix_gives_the_mean_and_says_why():
    matrix, mean = torch.tensor([[1.0, 3.0], [3.0, 1.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    solution, diagnosis = solve(matrix, torch.ones(2, 2), mean)
    assert torch.equal(solution, mean)
    assert diagnosis.fallback == "average"
    assert "positive semi-definite" in str(diagnosis.reason)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_gives_the_mean(value):
    matrix = torch.eye(3)
    matrix[2, 1] = matrix[1, 2] = value
    solution, diagnosis = solve(matrix, torch.ones(2, 3), torch.full((2, 3), 4.0))
    assert torch.equal(solution, torch.full((2, 3), 4.0))
    assert diagnosis.fallback == "average"


def test_products_that_overflow_give_the_mean():
    solution, diagnosis = solve(torch.eye(2), torch.tensor([[float("inf"), 0.0]]), torch.ones(1, 2))
    assert torch.equal(solution, torch.ones(1, 2))
    assert diagnosis.reason == "the solution is not finite"


def test_a_zero_matrix_gives_the_mean():
    solution, diagnosis = solve(torch.zeros(3, 3), torch.ones(2, 3), torch.full((2, 3), 7.0))
    assert torch.equal(solution, torch.full((2, 3), 7.0))
    assert diagnosis.dead_features == 3


def test_energies_at_the_bottom_of_float32_count_as_dead():
    matrix = torch.diag(torch.tensor([1e-40, 1.0]))
    solution, diagnosis = solve(matrix, torch.ones(1, 2), torch.full((1, 2), 3.0))
    assert solution.tolist() == [[3.0, 1.0]]
    assert diagnosis.dead_features == 1


def test_a_regmean_precision_scales_by_rows_unless_rows_count():
    gram = Gram(packing.pack(torch.eye(2) * 8), 2, rows=4)
    equal = METHODS["regmean"].precision(gram, 3.0, MethodSettings(alpha=0.5, normalize="equal"))
    by_rows = METHODS["regmean"].precision(gram, 3.0, MethodSettings(alpha=0.5, normalize="rows"))
    assert times(equal, torch.ones(1, 2)).tolist() == [[6.0, 6.0]]
    assert times(by_rows, torch.ones(1, 2)).tolist() == [[24.0, 24.0]]


def test_alpha_scales_the_off_diagonal_only():
    gram = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    precision = GramPrecision(packing.pack(gram), 2, scale=10.0, alpha=0.25)
    expected = torch.tensor([[20.0, 2.5], [2.5, 30.0]])
    assert torch.allclose(times(precision, torch.eye(2)), expected)
    sums = precision.begin((2, 2), torch.float64, Workspace())
    sums.add(precision, None)
    assert torch.allclose(sums.total.tril(), expected.double().tril())
    assert not sums.products.any()


def test_which_solves_need_float64():
    regmean, linear = METHODS["regmean"], METHODS["linear"]
    coarse = MethodSettings(alpha=0.95, normalize="equal")
    assert not regmean.needs_float64(coarse, width=10, rows=40)
    assert regmean.needs_float64(coarse, width=10, rows=39)
    assert regmean.needs_float64(MethodSettings(alpha=0.96, normalize="equal"), width=10, rows=10_000)
    assert not linear.needs_float64(MethodSettings(alpha=1.0, normalize="equal"), width=10, rows=0)


def test_the_accumulator_does_not_touch_what_it_was_given():
    gram, difference = packing.pack(torch.eye(3)), torch.ones(2, 3)
    accumulator = Accumulator[GramPrecision]((2, 3), dtype=torch.float32)
    for _ in range(2):
        accumulator.add(difference, GramPrecision(gram, 3), 2.0)
    assert torch.equal(gram, packing.pack(torch.eye(3)))
    assert torch.equal(difference, torch.ones(2, 3))
    assert torch.allclose(accumulator.solve().delta, torch.ones(2, 3))


def test_an_empty_accumulator_and_sums_without_weight_are_refused():
    with pytest.raises(ValueError, match="nothing was added"):
        Accumulator[ScalarPrecision]((2,), dtype=torch.float32).solve()
    with pytest.raises(ValueError, match="must be positive"):
        solve_sums(Sums(ScalarPrecision(0.0).begin((2,), torch.float32, Workspace()), torch.zeros(2), 0.0))


def test_a_scalar_precision_gives_the_mean_and_an_elementwise_one_multiplies_element_by_element():
    scalar = ScalarPrecision(2.0).begin((2,), torch.float32, Workspace())
    scalar.add(ScalarPrecision(2.0), torch.ones(2))
    assert scalar.solve(torch.tensor([3.0, 4.0]))[0].tolist() == [3.0, 4.0]
    values = torch.tensor([1.0, 2.0])
    sums = DiagonalPrecision(values).begin((2,), torch.float64, Workspace())
    for _ in range(2):
        sums.add(DiagonalPrecision(values), torch.ones(2, dtype=torch.float64))
    assert sums.total.tolist() == [2.0, 4.0]
    assert sums.products.tolist() == [2.0, 4.0]
    assert sums.total.dtype == torch.float64


def test_a_sum_that_was_asked_for_again_does_not_remember_the_last_one():
    workspace = Workspace()
    for scale in (1.0, 2.0):
        accumulator = Accumulator[GramPrecision]((1, 2), dtype=torch.float32, workspace=workspace)
        accumulator.add(None, GramPrecision(packing.pack(torch.eye(2)), 2), 1.0)
        accumulator.add(torch.full((1, 2), scale), GramPrecision(packing.pack(torch.eye(2)), 2), 1.0)
        assert torch.allclose(accumulator.solve().delta, torch.full((1, 2), scale / 2))
