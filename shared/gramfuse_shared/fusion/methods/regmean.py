"""`regmean`: linear weights by least squares on everybody's inputs, everything else by the mean.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023.
"""

from typing import Final

from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.methods.method import Gram, MethodSettings
from gramfuse_shared.fusion.precision import GramPrecision, Precision, ScalarPrecision

FLOAT32_ALPHA: Final = 0.95
"""Up to this α the scaled sum's smallest eigenvalue is at least 1−α = 0.05 and float32 holds 2e-6, above not."""

FLOAT32_ROWS_PER_FEATURE: Final = 4
"""Fewer rows in all than this times the width make the sum nearly singular whatever α is: float32 then misses 2e-6
by a factor of four (measured with features of a thousandfold range). The policy's minimum is far above, so this costs
nothing where it matters."""


class RegMean:
    """P = (a/n)(αG + (1−α) diag G + ρ(tr G/d)I), with a = c, or c·n where contributions count by their rows.

    Published is ρ = 0 and α = 0.9, or 0.1 for T5. α = 1 and ρ > 0 add to the diagonal in place of scaling what is off
    it; α = 0 is the diagonal alone.
    """

    name = "regmean"
    version = "regmean/1"
    reads_taps = True

    def needs_float64(self, settings: MethodSettings, *, width: int, rows: int) -> bool:
        """Tell whether α leaves too little of the diagonal, or the rows too little of the rank, for float32."""
        return settings.alpha > FLOAT32_ALPHA or rows < FLOAT32_ROWS_PER_FEATURE * width

    def precision(self, gram: Gram | None, weight: float, settings: MethodSettings) -> Precision:
        """Return the Gram precision of a linear weight, the scalar c of everything else."""
        if gram is None:
            return ScalarPrecision(weight)
        scale = weight if settings.normalize == "rows" else weight / gram.rows
        mean = packing.trace(gram.packed, gram.width) / gram.width if settings.ridge else 0.0
        ridge = settings.ridge * mean
        return GramPrecision(gram.packed, gram.width, scale=scale, alpha=settings.alpha, ridge=ridge)
