"""`ties`: only the largest differences count, and only where they agree with the elected sign.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023.
"""

import torch

from gramfuse_shared.fusion.methods.method import DeltaSettings, DeltaSum
from gramfuse_shared.fusion.methods.signed_sum import ElectedMean
from gramfuse_shared.fusion.methods.sparsifying import keep_largest_
from gramfuse_shared.fusion.workspace import Workspace


class Ties:
    """Trim each difference to its largest elements, elect signs, take the mean of those that agree."""

    name = "ties"
    version = "ties/1"
    reads_taps = False
    turns = 2

    def begin(self, count: int, dtype: torch.dtype, settings: DeltaSettings, workspace: Workspace) -> DeltaSum:
        """Return the elected mean of the trimmed differences."""
        density = settings.density
        return ElectedMean.begin(
            count, dtype, settings.scale, lambda delta: keep_largest_(delta.values, density), workspace
        )
