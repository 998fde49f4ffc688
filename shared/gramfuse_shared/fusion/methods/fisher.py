"""`fisher`: every element by the Fisher information that each contribution has of it.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, eq. 5 with the diagonal
approximation. Their released code raises the first model's elements to 1e-6, so that no sum is zero; here an element of
which nobody has any information keeps the mean, and no other is touched: a floor would change what was measured by an
amount that hangs on the loss's unit.
"""

from gramfuse_shared.fusion.methods.method import Fisher, MethodSettings
from gramfuse_shared.fusion.precision import DiagonalPrecision


class FisherWeighted:
    """P = a F elementwise, F the raw sum over n examples: a = c/n (`equal`), c (`rows`) or c/‖F‖ (`norm`).

    ‖F‖ is the norm over all parameters that are merged so, as in the authors' released code; or (`parameter_norm`) over
    each by itself, as RegMean's authors compare with (Jin et al., ICLR 2023; `fisher_normalize: param` of their code).
    """

    name = "fisher"
    version = "fisher/1"
    reads_taps = False

    def elementwise_precision(self, fisher: Fisher, weight: float, settings: MethodSettings) -> DiagonalPrecision:
        """Return the diagonal precision of some elements."""
        divisor = {"equal": float(fisher.examples), "rows": 1.0}.get(settings.normalize, fisher.norm)
        # no information at all has no norm, and weighs nothing anyway
        return DiagonalPrecision(fisher.values, scale=weight / divisor if divisor > 0 else 0.0)
