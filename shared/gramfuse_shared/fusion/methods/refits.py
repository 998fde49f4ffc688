"""`head`, `refit` and `calibration`: a merged model's head, layers or biases, from answers to a request about it.

The arithmetic is in `fusion.head`, `fusion.refit` and `fusion.calibration`.
"""

from typing import Final

from gramfuse_shared.fusion.methods.method import RefitMethod

HEAD: Final = RefitMethod("head", "head/1")
REFIT: Final = RefitMethod("refit", "refit/1")
CALIBRATION: Final = RefitMethod("calibration", "calibration/1")
