"""`dare_linear` and `dare_ties`: a random part of each difference counts, the more for it.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", ICML 2024; the
two ways of combining what is left, and their names, as in mergekit.
"""

from typing import Final

from gramfuse_shared.fusion.methods.method import DeltaMethod
from gramfuse_shared.fusion.methods.signed_sum import ElectedMean, WeightedSum
from gramfuse_shared.fusion.methods.sparsifying import keep_at_random_

DARE_LINEAR: Final = DeltaMethod("dare_linear", "dare_linear/1", keep_at_random_, WeightedSum)
DARE_TIES: Final = DeltaMethod("dare_ties", "dare_ties/1", keep_at_random_, ElectedMean)
