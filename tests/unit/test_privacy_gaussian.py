"""Calibration and composition against the definition, and against an accountant that others wrote and checked."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from gramfuse.privacy.gaussian import compose, delta_of, epsilon_of, mu_of
from gramfuse_shared.contract.privacy import PrivacyBudget

budgets = st.builds(
    PrivacyBudget, epsilon=st.floats(0.01, 60), delta=st.floats(-11.9, -2).map(lambda exponent: 10**exponent)
)


@given(budgets)
def test_the_noise_is_the_least_that_an_independent_accountant_allows(budget):
    ours = 1 / mu_of(budget)
    theirs = dp_accounting.get_sigma_gaussian(budget.epsilon, budget.delta)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours >= theirs * (1 - 1e-8)


@given(budgets)
def test_a_budget_that_is_spent_at_once_comes_back_as_itself(budget):
    mu = mu_of(budget)
    assert delta_of(mu, budget.epsilon) <= budget.delta
    assert epsilon_of(mu, budget.delta) == pytest.approx(budget.epsilon, rel=1e-6)
    assert delta_of(mu * 1.001, budget.epsilon) > budget.delta  # less noise would not do


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 0.0), (1.0, 1.0), (0.3, 0.5), (3.0, 8.0)])
def test_delta_is_the_most_by_which_likelihoods_differ(mu, epsilon):
    """δ(ε) = ∫ max(p − e^ε q, 0) for p = N(μ, 1) and q = N(0, 1): the definition, integrated."""
    exact, _ = quad(lambda x: max(norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x), 0.0), -30, 30, limit=500)
    assert delta_of(mu, epsilon) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("mus", [(1.0, 1.0), (0.5, 1.2, 0.8), (0.1,) * 20])
def test_releases_compose_as_a_numerical_accountant_composes_them(mus):
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for mu in mus:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / mu))
    assert epsilon_of(compose(mus), 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=5e-3)


def test_nothing_released_is_nothing_spent():
    assert compose(()) == 0
    assert epsilon_of(0.0, 1e-5) == 0
    assert delta_of(0.0, 0.0) == 0


def test_epsilon_falls_as_delta_and_noise_grow():
    assert np.all(np.diff([epsilon_of(1.0, 10.0**-k) for k in range(2, 12)]) > 0)
    assert np.all(np.diff([epsilon_of(mu, 1e-5) for mu in np.linspace(0.1, 5, 20)]) > 0)
