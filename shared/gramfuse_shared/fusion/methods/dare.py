"""`dare_linear` and `dare_ties`: a random part of each difference counts, the more for it.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", ICML 2024; the
two ways of combining what is left, and their names, as in mergekit.
"""

import torch

from gramfuse_shared.fusion.methods.method import DeltaSettings, DeltaSum
from gramfuse_shared.fusion.methods.signed_sum import ElectedMean, Sparsify, WeightedSum
from gramfuse_shared.fusion.methods.sparsifying import keep_at_random_
from gramfuse_shared.fusion.workspace import Workspace


class DareLinear:
    """Task arithmetic on differences that chance made sparse."""

    name = "dare_linear"
    version = "dare_linear/1"
    reads_taps = False
    turns = 1

    def begin(self, count: int, dtype: torch.dtype, settings: DeltaSettings, workspace: Workspace) -> DeltaSum:
        """Return the weighted sum of what chance left."""
        return WeightedSum.begin(count, dtype, settings.scale, _at_random(settings.density), workspace)


class DareTies:
    """Sign election among differences that chance made sparse."""

    name = "dare_ties"
    version = "dare_ties/1"
    reads_taps = False
    turns = 2

    def begin(self, count: int, dtype: torch.dtype, settings: DeltaSettings, workspace: Workspace) -> DeltaSum:
        """Return the elected mean of what chance left."""
        return ElectedMean.begin(count, dtype, settings.scale, _at_random(settings.density), workspace)


def _at_random(density: float) -> Sparsify:
    return lambda delta: keep_at_random_(delta.values, density, delta.seed)
