"""How much Gaussian noise makes a release (ε, δ)-private, and what several releases come to. Pure.

Noise of standard deviation σ on a function of L2 sensitivity Δ is μ-Gaussian differentially private with μ = Δ/σ, and

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)

exactly: no smaller δ holds (Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018,
theorem 8). Releases of μ₁, μ₂, … are together μ-private with μ² = Σμᵢ², exactly again (Dong, Roth and Su, "Gaussian
Differential Privacy", JRSS-B 2022, corollary 3.3).
"""

import math
from collections.abc import Callable, Iterable
from typing import Final

from scipy.special import log_ndtr, ndtr

from gramfuse_shared.contract.privacy import PrivacyBudget

_LEAST: Final = 1e-12
_MOST: Final = 1e3


def delta_of(mu: float, epsilon: float) -> float:
    """Return the least δ for which noise of μ is (ε, δ)-private; the formula above."""
    if mu == 0:
        return 0.0
    # e^ε Φ(…) by logarithms: e^ε alone may overflow, and Φ underflow
    return max(float(ndtr(mu / 2 - epsilon / mu)) - math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))), 0.0)


def epsilon_of(mu: float, delta: float) -> float:
    """Return the least ε ≥ 0 for which noise of μ is (ε, δ)-private, rounded up by at most 1e-9 of it."""
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    return _first(lambda epsilon: delta_of(mu, epsilon) <= delta, _LEAST, _MOST)


def mu_of(budget: PrivacyBudget) -> float:
    """Return the largest μ that is (ε, δ)-private, rounded down: noise of σ = Δ/μ is just enough.

    δ grows with μ, so μ is bisected for; the result is Balle and Wang's algorithm 1, which bisects for a function of μ.
    """
    return 1 / _first(lambda inverse: delta_of(1 / inverse, budget.epsilon) <= budget.delta, 1 / _MOST, 1 / _LEAST)


def compose(mus: Iterable[float]) -> float:
    """Return the μ of several releases about the same texts."""
    return math.sqrt(sum(mu * mu for mu in mus))


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the least value at which something holds that holds from there on, from above to 1e-10 of it."""
    while high > low * (1 + 1e-10):
        middle = math.sqrt(low * high)
        if middle in {low, high}:
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
