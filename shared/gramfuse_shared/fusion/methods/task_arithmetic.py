"""`task_arithmetic`: the base and a scaled sum of the differences from it, W = W_base + λ Σ cᵢDᵢ.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023; `lambda` and the weights as in mergekit.
"""

from typing import Final

from gramfuse_shared.fusion.methods.method import DeltaMethod
from gramfuse_shared.fusion.methods.signed_sum import WeightedSum

TASK_ARITHMETIC: Final = DeltaMethod(
    name="task_arithmetic",
    version="task_arithmetic/1",
    sparsify=lambda values, _density, _seed: values,
    combine=WeightedSum,
)
