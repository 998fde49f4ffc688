"""`linear`: the weighted mean of every parameter (mergekit's name; "Simple" in the RegMean paper)."""

from gramfuse_shared.fusion.methods.method import Gram, MethodSettings
from gramfuse_shared.fusion.precision import Precision, ScalarPrecision


class Linear:
    """P = c for every parameter."""

    name = "linear"
    version = "linear/1"
    reads_taps = False

    def needs_float64(self, settings: MethodSettings, *, width: int, rows: int) -> bool:  # noqa: ARG002
        """Return False: a mean loses nothing in float32."""
        return False

    def precision(self, gram: Gram | None, weight: float, settings: MethodSettings) -> Precision:  # noqa: ARG002
        """Return the scalar c."""
        return ScalarPrecision(weight)
