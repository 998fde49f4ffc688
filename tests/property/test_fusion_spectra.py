"""Inputs that break inverses: a condition of 1e12, dead, duplicated, tiny and outlying features, all at once."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from support.fusion_oracle import Contributor, merge, relative_error, scaled_least_squares, weighted_mean

SEEDS = st.integers(0, 2**20)
WIDTHS = st.sampled_from([16, 72, 160])
PLAGUES = st.sets(st.sampled_from(["decay", "dead", "duplicated", "tiny", "outlier"]), max_size=5)
EVERY = {"decay", "dead", "duplicated", "tiny", "outlier"}


def plagued_contributors(seed: int, width: int, plagues: set[str]) -> list[Contributor]:
    """Return three contributors whose input features suffer; 4·width rows each."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(width, generator=generator)
    quarter = max(1, width // 8)
    base = torch.randn(12, width, generator=generator) / width**0.5
    contributors = []
    for share in (1.0, 0.5, 2.0):
        rows = torch.randn(4 * width, width, generator=generator)
        if "decay" in plagues:  # singular values from 1 to 1e-6: the Gram matrix has a condition of 1e12
            turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
            rows = rows @ (torch.logspace(0, -6, width)[:, None] * turn)
        if "duplicated" in plagues:
            rows[:, order[:quarter]] = rows[:, order[quarter : 2 * quarter]]
        if "tiny" in plagues:
            rows[:, order[2 * quarter : 3 * quarter]] *= 1e-6
        if "outlier" in plagues:
            rows[:, order[3 * quarter]] = 1e3 * rows[:, order[3 * quarter]] + 1e3
        if "dead" in plagues:
            rows[:, order[4 * quarter : 5 * quarter]] = 0.0
        weight = base + 0.1 * torch.randn(12, width, generator=generator) / width**0.5
        contributors.append(Contributor(weight, rows, share))
    return contributors


@given(seed=SEEDS, width=WIDTHS, plagues=PLAGUES, alpha=st.sampled_from([0.0, 0.5, 0.9]))
@example(seed=1, width=160, plagues=EVERY, alpha=0.9)
def test_up_to_alpha_nine_tenths_the_outputs_are_those_of_the_float64_solution(seed, width, plagues, alpha):
    """Each weight counts by its feature's energy: that is what the layer's outputs notice of an error in it."""
    contributors = plagued_contributors(seed, width, plagues)
    merged, solution = merge(contributors, alpha=alpha)
    expected, root = scaled_least_squares(contributors, alpha=alpha)
    assert solution.diagnosis.fallback == "none"
    assert relative_error(merged * root, expected * root) < 2e-6


@given(seed=SEEDS, width=WIDTHS, plague=st.sampled_from(sorted(EVERY)), alpha=st.sampled_from([0.0, 0.5, 0.9]))
def test_under_any_one_of_them_the_weights_are_too(seed, width, plague, alpha):
    """Two at once can give a feature that hardly occurs weights of a million, and the norm sees nothing else."""
    contributors = plagued_contributors(seed, width, {plague})
    merged, _ = merge(contributors, alpha=alpha)
    assert relative_error(merged, scaled_least_squares(contributors, alpha=alpha)[0]) < 2e-6


@given(seed=SEEDS, width=WIDTHS, plagues=PLAGUES)
@example(seed=1, width=160, plagues=EVERY)
def test_at_alpha_one_nothing_blows_up(seed, width, plagues):
    """(W − W̄)S^½ = Σ (Wᵢ − W̄)S^½ · S^-½GᵢS^-½, and no factor S^-½GᵢS^-½ is longer than 1: neither is what comes out."""
    contributors = plagued_contributors(seed, width, plagues)
    merged, _ = merge(contributors, alpha=1.0)
    assert bool(torch.isfinite(merged).all())
    mean = weighted_mean(contributors)
    pooled = torch.cat([c.rows.double() * (c.share / len(c.rows)) ** 0.5 for c in contributors])

    def outputs(weight: torch.Tensor) -> float:
        return float((pooled @ (weight.double() - mean).T).norm())

    assert outputs(merged) <= 1.01 * sum(outputs(contributor.weight) for contributor in contributors)
