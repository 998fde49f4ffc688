"""`wudi`: linear weights by what their differences from the base say on themselves, everything else by the mean.

Cheng et al., "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors", ICML
2025: minimize Σᵢ ‖(D − Dᵢ)Dᵢᵀ‖²/‖Dᵢ‖² for each linear layer, a few steps from ΣDᵢ. That is of the precision form.
Without a ridge it is descended as published, because its exact solution is far off (ADR 0018); with one it is solved.
"""

import torch

from gramfuse_shared.fusion.descent import DescendedPrecision
from gramfuse_shared.fusion.methods.method import Gram, MethodSettings
from gramfuse_shared.fusion.precision import GramPrecision, Precision, ScalarPrecision
from gramfuse_shared.fusion.second_moment import second_moment


class Wudi:
    """P = c(DᵀD/‖D‖² + (ρ/d)I) of a linear weight, D = W − W_base [out, d]; 1/d is the former's mean diagonal."""

    name = "wudi"
    version = "wudi/1"
    reads_taps = False

    def needs_float64(self, settings: MethodSettings, *, width: int, rows: int) -> bool:  # noqa: ARG002
        """Tell whether it is solved: adapters' differences leave the sum what little the ridge adds."""
        return settings.ridge > 0

    def gram(self, difference: torch.Tensor) -> Gram:
        """Return DᵀD/‖D‖², D [out, in]; as one row, because its trace is 1. Without any difference it is zero."""
        return Gram(second_moment(difference, trace=1.0), difference.shape[1], rows=1)

    def precision(self, gram: Gram | None, weight: float, settings: MethodSettings) -> Precision:
        """Return c times the matrix of a linear weight, the scalar c of everything else."""
        if gram is None:
            return ScalarPrecision(weight)
        if settings.ridge:
            return GramPrecision(gram.packed, gram.width, scale=weight, ridge=settings.ridge / gram.width)
        return DescendedPrecision(gram.packed, gram.width, weight)
