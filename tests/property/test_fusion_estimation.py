"""An estimated Gram matrix has the shape of the difference and the size of the measured ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.estimation import Measured
from gramfuse_shared.fusion.methods.method import Gram
from support.fusion_oracle import relative_error

SEEDS = st.integers(0, 2**20)


def gram_of(rows: torch.Tensor) -> Gram:
    flat = packing.packed_zeros(rows.shape[1])
    packing.accumulate_rows(flat, rows)
    return Gram(flat, rows.shape[1], len(rows))


def measured_from(*grams: Gram) -> Measured:
    measured = Measured()
    for gram in grams:
        measured.add(gram)
    return measured


def per_row(gram: Gram) -> float:
    return packing.trace(gram.packed, gram.width) / gram.rows


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=SEEDS, width=st.integers(1, 300), height=st.integers(1, 40), dtype=st.sampled_from(["float32", "float64"]))
def test_an_estimate_is_the_differences_second_moment_in_the_mean_size(seed, width, height, dtype):
    grams = [gram_of(3 * randn(seed + 1, 50, width)), gram_of(randn(seed + 2, 150, width))]
    difference = randn(seed, height, width).to(getattr(torch, dtype))
    estimate = measured_from(*grams).estimate(difference)
    exact = difference.double().T @ difference.double()
    exact *= 100 * (per_row(grams[0]) + per_row(grams[1])) / 2 / exact.trace()
    assert (estimate.rows, estimate.width, estimate.packed.dtype) == (100, width, difference.dtype)
    assert relative_error(packing.unpack(estimate.packed, width), exact) < 2e-6
    assert per_row(estimate) == pytest.approx((per_row(grams[0]) + per_row(grams[1])) / 2, rel=1e-5)


@given(seed=SEEDS, cut=st.integers(1, 19))
def test_one_tensor_or_several_that_read_the_tap_have_one_estimate(seed, cut):
    difference, measured = randn(seed, 20, 12), measured_from(gram_of(randn(seed + 1, 30, 12)))
    swapped = torch.cat([difference[cut:], difference[:cut]])
    assert relative_error(measured.estimate(swapped).packed, measured.estimate(difference).packed) < 1e-6


@given(seed=SEEDS, exponent=st.integers(-42, 37))
def test_how_far_a_contribution_moved_does_not_count(seed, exponent):
    """Neither the learning rate nor the number of steps says how sure somebody is; tiny and huge ones are exact too."""
    measured, difference = measured_from(gram_of(randn(seed + 1, 30, 12))), randn(seed, 20, 12).clamp(-3, 3)
    scaled = (difference.double() * 10.0**exponent).float()
    found = measured.estimate(scaled).packed
    assert found.isfinite().all()
    if exponent > -36:  # below, float32 holds few digits of the difference, or none
        assert relative_error(found, measured.estimate(difference).packed) < 1e-5


def test_without_any_difference_nothing_is_known():
    estimate = measured_from(gram_of(randn(0, 30, 12))).estimate(torch.zeros(20, 12))
    assert not estimate.packed.any()


def test_where_nobody_measured_there_is_no_size():
    with pytest.raises(ValueError, match="takes its size from measured statistics"):
        Measured().estimate(torch.ones(2, 2))


@settings(max_examples=10)
@given(seed=SEEDS)
def test_gradient_descent_on_random_targets_leaves_the_shape_of_the_inputs(seed):
    """The claim that the estimate rests on, where its premise holds: gradients that know nothing of the inputs."""
    width, height, rows = 6, 4_000, 64
    inputs = randn(seed, rows, width) * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.7, 0.5])
    difference = -0.01 * randn(seed + 1, rows, height).T @ inputs  # Σ δxᵀ
    estimate = measured_from(gram_of(inputs)).estimate(difference)
    exact = gram_of(inputs)
    assert relative_error(estimate.packed, exact.packed) < 0.2
