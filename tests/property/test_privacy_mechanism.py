"""What the proof needs of the code: how far one text can move the mean, and that the noise is what it is said to be."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest, norm

from gramfuse.privacy.clipping import ClippedSum
from gramfuse.privacy.gaussian import mu_of
from gramfuse.privacy.noise import NoiseSource, add_noise, step_of
from gramfuse.privacy.releasing import RIDGE, Mechanism
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.privacy import PrivacyBudget
from gramfuse_shared.merging.scales import Scales
from support.scales import scales_metadata
from support.server_world import make_tap

KEY = bytes(range(32))
WIDTHS = {"one": 3, "two": 5}
BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)


def scales(clip: float = 1.0, seed: int = 0) -> Scales:
    taps = tuple(
        TapInfo.model_validate(make_tap(name=name, width=width, layers=[{"weight": f"{name}.weight"}]).model_dump())
        for name, width in WIDTHS.items()
    )
    chosen = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(width, generator=chosen) + 0.01 for name, width in WIDTHS.items()}
    return Scales(scales_metadata("a" * 64, taps, clip=clip), values)


def rows_of(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(found) for name, found in values.items()}


def means(examples, clip: float = 1.0) -> dict[str, torch.Tensor]:
    sums = ClippedSum(scales(clip))
    for example in examples:
        sums.add(example)
    return {name: sums.mean(name) for name in WIDTHS}


def distance(one, other) -> float:
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in WIDTHS))


finite = st.floats(-1e6, 1e6, width=32)
examples = st.fixed_dictionaries(
    {
        name: st.integers(0, 6).flatmap(lambda n, width=width: arrays(np.float32, (n, width), elements=finite))
        for name, width in WIDTHS.items()
    }
).map(rows_of)


# --- sensitivity -----------------------------------------------------------------------------------------------------


@given(st.lists(examples, min_size=1, max_size=5), examples, st.floats(1e-3, 1e3), st.randoms())
def test_whatever_text_replaces_another_the_mean_moves_by_no_more_than_the_bound(texts, other, clip, chance):
    place = chance.randrange(len(texts))
    replaced = [*texts[:place], other, *texts[place + 1 :]]
    assert distance(means(texts, clip), means(replaced, clip)) <= math.sqrt(2) * clip / len(texts)


def test_the_bound_is_reached_so_no_smaller_one_would_do():
    """Two texts that lie in orthogonal directions, both clipped."""
    one = {"one": torch.tensor([[1e3, 0, 0]]), "two": torch.zeros(0, 5)}
    other = {"one": torch.tensor([[0, 1e3, 0]]), "two": torch.zeros(0, 5)}
    rest = [{"one": torch.randn(4, 3), "two": torch.randn(4, 5)} for _ in range(9)]
    moved = distance(means([one, *rest]), means([other, *rest]))
    assert moved == pytest.approx(math.sqrt(2) / 10, rel=1e-5)


def test_a_text_below_the_clip_counts_whole_and_one_above_by_the_clip():
    small = {"one": torch.full((2, 3), 1e-3), "two": torch.zeros(0, 5)}
    large = {"one": torch.full((2, 3), 1e3), "two": torch.full((7, 5), -1e3)}
    norm_of = math.sqrt(sum(float(found.square().sum()) for found in means([large]).values()))
    assert norm_of == pytest.approx(1.0, rel=1e-5)
    z = torch.full((1, 3), 1e-3).double() / (scales().root_mean_squares("one") * math.sqrt(3))
    assert torch.allclose(means([small])["one"], z.T @ z, rtol=1e-6)


def test_the_order_of_texts_and_how_they_are_gathered_change_nothing_but_rounding():
    texts = [{"one": torch.randn(150, 3), "two": torch.randn(150, 5)} for _ in range(11)]
    assert distance(means(texts), means(texts[::-1])) < 1e-13


# --- noise -----------------------------------------------------------------------------------------------------------


def test_the_noise_is_normal_in_the_middle_and_in_the_tails():
    values = NoiseSource(KEY).normal(400_000)
    assert kstest(values, "norm").pvalue > 0.01
    for at in (2.0, 3.0, 4.0):
        expected = 2 * norm.sf(at) * len(values)
        assert abs(int((np.abs(values) > at).sum()) - expected) < 5 * math.sqrt(expected)


def test_a_symmetric_matrix_of_noise_is_isotropic_in_the_frobenius_norm():
    """So whichever way a text moves the mean, by how much alone decides what noise hides of it."""
    source, chosen = NoiseSource(KEY), np.random.default_rng(0)
    drawn = np.stack([source.symmetric(4) for _ in range(20_000)])
    assert np.array_equal(drawn, drawn.transpose(0, 2, 1))
    assert np.allclose(drawn[:, range(4), range(4)].var(axis=0), 1.0, atol=0.05)
    assert np.allclose(drawn[:, 0, 1:].var(axis=0), 0.5, atol=0.03)
    for _ in range(5):
        direction = chosen.normal(size=(4, 4))
        direction += direction.T
        direction /= np.linalg.norm(direction)
        assert kstest((drawn * direction).sum(axis=(1, 2)), "norm").pvalue > 0.001


def test_two_streams_share_no_noise_and_a_stream_does_not_repeat():
    one, other = NoiseSource(), NoiseSource()
    drawn = [source.normal(64) for source in (one, other, one)]
    assert all(not np.isin(first, second).any() for first, second in combinations(drawn, 2))


@given(
    arrays(np.float64, (6,), elements=st.floats(-10, 10)),
    arrays(np.float64, (6,), elements=st.floats(-1e-2, 1e-2)),
    st.floats(1e-6, 1e-3),
)
def test_what_is_released_is_the_exact_sum_rounded_to_whole_steps(values, noise, sigma):
    step = step_of(sigma)
    assert math.frexp(step)[0] == 0.5  # a power of two
    assert sigma / 128 < step <= sigma / 64
    released = add_noise(values, noise, step=step)
    for value, drawn, found in zip(values.tolist(), noise.tolist(), released.tolist(), strict=True):
        steps = Fraction(found) / Fraction(step)
        assert steps.denominator == 1
        error = abs((Fraction(value) + Fraction(drawn)) / Fraction(step) - steps)
        assert error <= Fraction(1, 2) + Fraction(1, 10**9)


def test_low_bits_of_a_value_do_not_show_in_what_is_released():
    """Two values a hair apart, one noise: the same release, unless the hair crosses the middle between two steps."""
    noise = NoiseSource(KEY).normal(10_000) * 1e-3
    step = step_of(1e-3)
    one, other = (add_noise(np.full(10_000, value), noise, step=step) for value in (0.3, np.nextafter(0.3, 1)))
    assert np.array_equal(one, other)


def test_sigma_is_the_sensitivity_over_mu():
    mechanism = Mechanism.of(BUDGET, clip=3.0, examples=1_000)
    assert mechanism.sigma == pytest.approx(math.sqrt(2) * 3 / 1_000 / mu_of(BUDGET))


def test_a_release_has_the_mean_under_noise_of_sigma():
    mechanism, mean = Mechanism.of(BUDGET, clip=1.0, examples=100), np.diag([0.5, 0.25, 0.125, 0.0])
    source = NoiseSource(KEY)
    drawn = np.stack([mechanism.release(mean, source) for _ in range(20_000)])
    spread = mechanism.sigma / math.sqrt(20_000)
    assert np.abs(drawn.mean(axis=0) - mean).max() < 5 * spread
    assert np.allclose(drawn[:, 0, 0].std(), mechanism.sigma, rtol=0.03)
    assert np.allclose(drawn[:, 0, 1].std(), mechanism.sigma / math.sqrt(2), rtol=0.03)


def test_what_is_repaired_is_positive_definite_by_at_least_the_ridge():
    mechanism, source = Mechanism.of(BUDGET, clip=1.0, examples=100), NoiseSource(KEY)
    repaired = mechanism.repair(mechanism.release(np.zeros((64, 64)), source))
    ridge = RIDGE * mechanism.sigma * math.sqrt(128)
    assert torch.equal(repaired, repaired.T)
    assert float(torch.linalg.eigvalsh(repaired).min()) == pytest.approx(ridge, rel=1e-6)


def test_the_norm_of_the_noise_is_what_the_ridge_is_a_share_of():
    source = NoiseSource(KEY)
    found = np.abs(np.linalg.eigvalsh(source.symmetric(400))).max()
    assert found == pytest.approx(math.sqrt(2 * 400), rel=0.05)
