"""Fact 6's other side: what Gaussian noise on a Gram matrix leaves of the attack on membership.

One tap alone, which is the attack's best case: noise is sized for all taps of a model together.
"""

import math
from statistics import median

import pytest
import torch

from gramfuse.measuring.example_moments import joint_norm, scaled
from gramfuse.privacy.clipping import ClippedSum
from gramfuse.privacy.gaussian import mu_of
from gramfuse.privacy.membership import LeverageMeter, auc
from gramfuse.privacy.noise import NoiseSource
from gramfuse.privacy.releasing import Mechanism
from gramfuse_shared.contract.privacy import PrivacyBudget
from gramfuse_shared.merging.scales import Scales
from support.scales import scales_metadata
from support.server_world import make_tap
from support.tweets import QUERY

TEXTS, OTHERS, WIDTH = 260, 150, 384
KEYS = [bytes([number]) * 32 for number in range(5)]
TAP = "entrance"


class Noised:
    """What the client measures of one tap with public scales, before and after noise."""

    def __init__(self, rows):
        tap = make_tap(name=TAP, width=WIDTH, layers=[{"weight": QUERY.format(5)}])
        squares = torch.cat(rows.public).square().mean(0).clamp_min(1e-12)
        roots = {TAP: squares.double().sqrt()}
        norms = [joint_norm(scaled({TAP: own}, roots)) for own in rows.public]
        self.clip = median(norms)
        self.scales = Scales(scales_metadata("ab" * 32, [tap], clip=self.clip), {TAP: squares})
        self.mine = [self.alone(own) for own in rows.mine[:TEXTS]]
        self.others = [self.alone(own) for own in rows.others[:OTHERS]]
        self.mean = sum(self.mine) / TEXTS
        self.rows = {True: rows.mine[:TEXTS], False: rows.others[:OTHERS]}
        self.public = sum(self.alone(own) for own in rows.public)
        self.roots = roots[TAP]

    def alone(self, own):
        """One text's clipped second moment, as the client adds it up."""
        sums = ClippedSum(self.scales)
        sums.add({TAP: own})
        return sums.mean(TAP)

    def releases(self, epsilon):
        mechanism = Mechanism.of(PrivacyBudget(epsilon=epsilon, delta=1e-5), clip=self.clip, examples=TEXTS)
        for key in KEYS:
            yield mechanism, torch.from_numpy(mechanism.release(self.mean.numpy(), NoiseSource(key)))

    def membership(self, moment):
        """The AUC of the attack of test_membership.py on a second moment."""
        meter = LeverageMeter(moment * TEXTS, self.public)
        told = {}
        for inside, texts in self.rows.items():
            whole = [own / (self.roots * math.sqrt(WIDTH * len(own))) for own in texts]
            told[inside] = torch.tensor([meter.measure(own).outside() for own in whole])
        return auc(told[False], told[True])


@pytest.fixture(scope="session")
def noised(mixed_rows):
    return Noised(mixed_rows[5])


def test_without_noise_the_attack_tells_members(noised):
    assert noised.membership(noised.mean) > 0.6


@pytest.mark.parametrize("epsilon", [8.0, 1.0])
def test_with_it_the_attack_is_a_coins_toss(noised, epsilon):
    mechanism, noisy = next(noised.releases(epsilon))
    assert noised.membership(mechanism.repair(noisy.numpy())) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("epsilon", "least"), [(8.0, 0.7), (1.0, 0.5)])
def test_who_knows_every_other_text_tells_more_and_no_more_than_the_mechanism_says(noised, epsilon, least):
    """The adversary that differential privacy supposes: it takes all other texts off. The AUC of no test between two
    neighbours is above Φ(μ/√2).
    """
    found = []
    for _, noisy in noised.releases(epsilon):
        noise = noisy - noised.mean
        inside = [float(((own / TEXTS + noise) * own).sum() / own.norm()) for own in noised.mine]
        outside = [float((noise * own).sum() / own.norm()) for own in noised.others]
        found.append(auc(torch.tensor(inside), torch.tensor(outside)))
    bound = float(torch.special.ndtr(torch.tensor(mu_of(PrivacyBudget(epsilon=epsilon, delta=1e-5)) / math.sqrt(2))))
    assert least < median(found) < bound + 0.03
