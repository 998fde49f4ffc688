"""`head` and `calibration`: a merged model's head, or its biases, from what organizations say of it in a request.

The arithmetic is in `fusion.head` and `fusion.calibration`.
"""

from typing import Final

from gramfuse_shared.fusion.methods.method import RefitMethod

HEAD: Final = RefitMethod("head", "head/1")
CALIBRATION: Final = RefitMethod("calibration", "calibration/1")
