"""`ties`: only the largest differences count, and only where they agree with the elected sign.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023.
"""

from typing import Final

from gramfuse_shared.fusion.methods.method import DeltaMethod
from gramfuse_shared.fusion.methods.signed_sum import ElectedMean
from gramfuse_shared.fusion.methods.sparsifying import keep_largest_

TIES: Final = DeltaMethod(
    name="ties",
    version="ties/1",
    sparsify=lambda values, density, _seed: keep_largest_(values, density),
    combine=ElectedMean,
)
