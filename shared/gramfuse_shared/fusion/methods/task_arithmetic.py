"""`task_arithmetic`: the base and a scaled sum of the differences from it.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023; `lambda` and the weights as in mergekit.
"""

import torch

from gramfuse_shared.fusion.methods.method import DeltaSettings, DeltaSum
from gramfuse_shared.fusion.methods.signed_sum import WeightedSum
from gramfuse_shared.fusion.workspace import Workspace


class TaskArithmetic:
    """W = W_base + λ Σ cᵢDᵢ."""

    name = "task_arithmetic"
    version = "task_arithmetic/1"
    reads_taps = False
    turns = 1

    def begin(self, count: int, dtype: torch.dtype, settings: DeltaSettings, workspace: Workspace) -> DeltaSum:
        """Return the weighted sum of the differences as they are."""
        return WeightedSum.begin(count, dtype, settings.scale, lambda delta: delta.values, workspace)
