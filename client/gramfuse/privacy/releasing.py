"""Turns clipped sums into statistics with noise: the Gaussian mechanism, and what makes a Gram matrix of its result.

What follows the noise uses public numbers alone, and costs no privacy.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gramfuse.measuring.distinct import DistinctRows
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.stream import Stream
from gramfuse.privacy.clipping import ClippedSum
from gramfuse.privacy.gaussian import mu_of
from gramfuse.privacy.noise import NoiseSource, add_noise, step_of
from gramfuse_shared.contract.manifest import CollectorSettings, TapInfo
from gramfuse_shared.contract.privacy import Noised, PrivacyBudget
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging.scales import Scales
from gramfuse_shared.version import __version__

RIDGE: Final = 0.1
"""Of the noise's norm: kept 91 % of RegMean's gain where the whole norm kept 78 %, and a hundredth 89 % (ADR 0025)."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """How much noise a release of the mean over n texts takes: σ = √2·C/(n·μ), and the step that it is rounded to."""

    sigma: float
    step: float

    @classmethod
    def of(cls, budget: PrivacyBudget, *, clip: float, examples: int) -> Self:
        """Calibrate for replacing one of n texts, n public; the sensitivity is derived in `clipping`."""
        sigma = math.sqrt(2) * clip / (examples * mu_of(budget))
        return cls(sigma, step_of(sigma))

    def release(self, mean: NDArray[np.float64], source: NoiseSource) -> NDArray[np.float64]:
        """Return a tap's mean [d, d] with noise: symmetric, whole steps, in general not positive semi-definite."""
        return add_noise(mean, source.symmetric(mean.shape[0]) * self.sigma, step=self.step)

    def repair(self, noisy: NDArray[np.float64]) -> torch.Tensor:
        """Return the nearest positive semi-definite matrix, plus a ridge of `RIDGE`·σ√(2d); float64 [d, d].

        σ√(2d) is the norm of the noise: its eigenvalues fill [−σ√(2d), σ√(2d)] (Wigner's semicircle for entries of
        variance σ²/2). In directions that hold much less than the ridge a merge stays near the average.
        """
        width = noisy.shape[0]
        values, vectors = torch.linalg.eigh(torch.from_numpy(noisy))
        repaired: torch.Tensor = (vectors * values.clamp(min=0)) @ vectors.T
        repaired.diagonal().add_(RIDGE * self.sigma * math.sqrt(2 * width))
        return repaired.add(repaired.T).div_(2)


def release_statistics(sums: ClippedSum, noised: Noised, *, source: NoiseSource | None = None) -> Statistics:
    """Return statistics with noise, as a file of which a merge takes them.

    Of every tap G = n·d·R(M̂)R, R = diag(rms): what n rows would have whose mean of z zᵀ is M̂. `rows` and
    `distinct_rows` are n at every tap. Each call is a release by itself, for the ledger to count.

    Args:
        sums: of the texts.
        noised: ε, δ, n and the release that the ledger holds already.
        source: of the noise; None draws a key from the operating system.
    """
    scales, examples = sums.scales, sums.examples
    mechanism = Mechanism.of(noised.budget, clip=scales.metadata.clip, examples=examples)
    drawn = source or NoiseSource()
    streams = {}
    for tap in scales.metadata.taps:
        noisy = mechanism.release(sums.mean(tap.name).numpy(), drawn)
        gram = raw_gram(mechanism.repair(noisy), tap, scales, examples)
        readers = tuple(layer.weight for layer in tap.layers)
        streams[readers] = Stream.of(tap.width, packing.pack(gram.float()), rows=examples, source=tap.source)
    return Statistics(
        streams,
        layouts={layer.weight: layer.layout for tap in scales.metadata.taps for layer in tap.layers},
        distinct=DistinctRows(anonymous=dict.fromkeys(streams, examples)),
        settings=CollectorSettings(collector_version=__version__, noised=noised),
        base=scales.metadata.base,
    )


def raw_gram(moment: torch.Tensor, tap: TapInfo, scales: Scales, examples: int) -> torch.Tensor:
    """Return n·d·R M R of a scaled second moment M, float64 [d, d]: scaled back to what the layers read."""
    root = scales.root_mean_squares(tap.name)
    return moment * root[:, None] * root * (examples * tap.width)
