"""Matrices of which the lower triangle counts: products and factors equal those of the full matrix in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramfuse_shared.fusion import packing, symmetric
from gramfuse_shared.fusion.cholesky import Factor

# Around the edges of blocks and panels, where an index is wrong if one is.
WIDTHS = st.sampled_from([1, 2, 127, 128, 129, 300, 1023, 1024, 1100])
SEEDS = st.integers(0, 2**20)


def gram_of(seed: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.randn(2 * width + 2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (rows.T @ rows / len(rows)).to(dtype)


def lower_of(gram: torch.Tensor) -> torch.Tensor:
    """The matrix as these functions take it: what stands above the diagonal must not matter."""
    return gram.tril() + torch.full_like(gram, 1e30).triu(1)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@settings(max_examples=20)
@given(width=WIDTHS, seed=SEEDS, height=st.integers(1, 9), alpha=st.sampled_from([1.0, -0.5]))
def test_a_product_with_the_lower_triangle_is_that_with_the_full_matrix(width, seed, height, alpha):
    gram = gram_of(seed, width)
    generator = torch.Generator().manual_seed(seed)
    left, out = (torch.randn(height, width, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = out + alpha * left @ gram
    symmetric.add_product_(out, left, lower_of(gram), alpha=alpha)
    assert relative_error(out, expected) < 1e-13


@settings(max_examples=20)
@given(width=WIDTHS, seed=SEEDS)
def test_a_packed_matrix_is_expanded_and_added_in_the_lower_triangle(width, seed):
    gram = gram_of(seed, width, torch.float32)
    flat = packing.pack(gram)
    total = torch.full((width, width), float("nan"), dtype=torch.float64)
    symmetric.expand(flat, total)
    assert torch.equal(total.tril(), gram.double().tril())
    symmetric.add_(total, total.clone(), alpha=2.0)
    assert torch.equal(total.tril(), 3 * gram.double().tril())


@settings(max_examples=20)
@given(width=WIDTHS, seed=SEEDS, height=st.integers(1, 5))
def test_a_factor_solves_and_multiplies_back_to_the_matrix(width, seed, height):
    gram = gram_of(seed, width)
    factor = Factor.of(lower_of(gram))
    lower = factor.lower.tril()
    assert relative_error(lower @ lower.T, gram) < 1e-13
    answer = torch.randn(height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert relative_error(factor.solve_(answer @ gram, torch.empty_like(answer)), answer) < 1e-10
    assert factor.smallest_pivot == pytest.approx(float(torch.linalg.cholesky(gram).diagonal().min()) ** 2, rel=1e-9)


@pytest.mark.parametrize("position", [0, 130, 299])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_matrix_that_is_not_positive_definite_has_no_factor_wherever_it_fails(position, value):
    gram = gram_of(1, 300)
    gram[position, position] = value
    assert Factor.of(gram) is None
