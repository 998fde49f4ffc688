"""Facts 4 and 5: sums of G and GW separate where the individual W are known, and two cohorts reveal who is in one.

The sums are those that a server would see behind masks; the weights those of models that were really fine-tuned.
"""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from support.tweets import QUERY

LAYERS = tuple(QUERY.format(5).replace("query", name) for name in ("query", "key", "value"))


@pytest.fixture(scope="session")
def weights(tuned, minilm):
    """W [m, d] of all linears on one tap, m = 3·384, of two that were tuned, and of one that was not."""
    stored = [load_file(folder / "model.safetensors") for folder in (*(model.folder for model in tuned), minilm)]
    return [torch.cat([tensors[name] for name in LAYERS]).double() for tensors in stored]


@pytest.fixture(scope="session")
def grams(mixed_rows):
    """Each organization's own Gram matrix of that tap, over a third of the tweets."""
    texts = mixed_rows[5].mine
    cuts = [0, 300, 600, 900]
    return [(rows := torch.cat(texts[a:b]).double()).T @ rows for a, b in pairwise(cuts)]


def sums(grams, weights):
    return sum(grams), sum(gram @ weight.T for gram, weight in zip(grams, weights, strict=True))


def off(found, truth):
    return float((found - truth).norm() / truth.norm())


def symmetric_solution(products, factors):
    """Solve Σ Gᵢ Fᵢᵀ = products, Fᵢ [m, d], for symmetric Gᵢ [d, d]: of least norm where there are several."""
    width = products.shape[0]
    basis = [torch.zeros(width, width, dtype=torch.float64) for _ in range(width * (width + 1) // 2)]
    for unit, place in zip(basis, torch.combinations(torch.arange(width), with_replacement=True), strict=True):
        unit[place[0], place[1]] = unit[place[1], place[0]] = 1.0
    units = torch.stack(basis)  # [d(d+1)/2, d, d]
    system = torch.cat([(units @ factor.T).flatten(1) for factor in factors]).T  # [d·m, (N−1)·d(d+1)/2]
    shares = torch.linalg.lstsq(system, products.flatten()[:, None], driver="gelsd").solution.squeeze(1)
    return [torch.einsum("k,kij->ij", share, units) for share in shares.chunk(len(factors))]


def test_of_two_members_both_gram_matrices_are_found_where_the_outputs_are_as_wide_as_the_inputs(grams, weights):
    total, products = sums(grams[:2], weights[:2])
    difference = weights[0] - weights[1]  # [m, d]
    assert difference.shape[0] >= difference.shape[1]
    found = torch.linalg.lstsq(difference, (products - total @ weights[1].T).T).solution.T
    assert off(found, grams[0]) < 1e-4
    assert off(total - found, grams[1]) < 1e-4


WIDTH = 24


def drawn_weights(members, outputs):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(outputs, WIDTH, generator=generator, dtype=torch.float64) for _ in range(members)]


@pytest.fixture(scope="session")
def narrow(grams):
    """The same Gram matrices as the first features of the tap see them: small enough to write the whole system down."""
    return [gram[:WIDTH, :WIDTH] for gram in grams]


@pytest.mark.parametrize(("outputs", "separates"), [(40, True), (26, True), (22, False)])
def test_of_three_members_all_are_found_where_outputs_are_wide_enough(narrow, outputs, separates):
    """(N − 1)(d + 1)/2 is 25 for N = 3 and d = 24."""
    weights = drawn_weights(3, outputs)
    total, products = sums(narrow, weights)
    found = symmetric_solution(products - total @ weights[2].T, [weight - weights[2] for weight in weights[:2]])
    error = max(off(one, two) for one, two in zip(found, narrow[:2], strict=True))
    assert (error < 1e-5) is separates


def test_without_the_weights_the_sums_fit_other_gram_matrices_as_well(narrow):
    """Members' shares exchanged, and weights to suit: the same sums. So in secure mode no weight is uploaded."""
    weights = drawn_weights(2, 48)
    total, products = sums(narrow[:2], weights)
    other = [narrow[1], total - narrow[1]]
    exchanged = [weights[1], torch.linalg.solve(other[1], products - other[0] @ weights[1].T).T]
    again, products_again = sums(other, exchanged)
    torch.testing.assert_close(again, total)
    torch.testing.assert_close(products_again, products, rtol=1e-6, atol=1e-6)


def test_two_averages_that_differ_by_one_member_reveal_that_member(weights):
    three, two = sum(weights) / 3, sum(weights[:2]) / 2
    assert off(3 * three - 2 * two, weights[2]) < 1e-12


def test_and_so_do_two_averages_that_differ_by_its_weight(weights):
    equal = sum(weights) / 3
    heavier = (weights[0] + weights[1] + 2 * weights[2]) / 4
    assert off(4 * heavier - 3 * equal, weights[2]) < 1e-12
