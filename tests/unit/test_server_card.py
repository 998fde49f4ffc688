"""What a model's card says of privacy: no more than the organizations' own word, and what it does not cover."""

from types import SimpleNamespace

from gramfuse_server.merging.card import describe_privacy
from gramfuse_server.merging.cohort import CohortMember
from gramfuse_shared.contract.privacy import Noised

NOISED = Noised(epsilon=8, delta=1e-5, examples=50, scales="ab" * 32, release="c" * 32)


def inputs(**noised):
    """Just what the sentence is made of: a cohort, and under what each one's statistics were noised."""
    cohort = tuple(CohortMember(f"{name}-1", name, 1.0) for name in noised)
    manifests = {
        f"{name}-1": SimpleNamespace(statistics=SimpleNamespace(collector=SimpleNamespace(noised=value)))
        for name, value in noised.items()
    }
    return SimpleNamespace(cohort=cohort, manifests=manifests)


def test_a_merge_without_noise_says_so():
    assert describe_privacy(inputs(acme=None, globex=None)) == "The merge is not differentially private."


def test_noise_is_told_by_whose_word_it_is_and_that_weights_have_none():
    told = describe_privacy(inputs(acme=NOISED, globex=None))
    assert "acme (ε = 8, δ = 1e-05)" in told
    assert "globex" not in told
    assert "as they say" in told
    assert "not the weights: these are not differentially private" in told
    assert "nobody can check the noise" in told
