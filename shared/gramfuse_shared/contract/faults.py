"""What is said of values that no contribution may hold: by the client before it sends, by the server behind that."""

from typing import Final

from gramfuse_shared.errors import StatisticsInvalidError, WeightsInvalidError

GRAM_NOT_FINITE: Final = "the Gram matrix holds NaN or infinity"


def weights_fault(tensor: str) -> WeightsInvalidError:
    """Return the error of a weight that is not finite."""
    msg = f"tensor {tensor} holds NaN or infinity; the training diverged, or the file is damaged"
    return WeightsInvalidError(msg, tensor=tensor)


def tap_fault(tap: str, reason: str) -> StatisticsInvalidError:
    """Return the error of a matrix that is no Gram matrix, with the reason."""
    msg = f"tap {tap}: {reason}; collect the statistics again"
    return StatisticsInvalidError(msg, tap=tap)


def gram_fault(tensor: str) -> StatisticsInvalidError:
    """Return the error of a statistics file's tensor that is not finite."""
    return tap_fault(tensor.partition(".")[2], GRAM_NOT_FINITE)


def fisher_fault(parameter: str) -> StatisticsInvalidError:
    """Return the error of values that are no sums of squares."""
    msg = f"the Fisher information of {parameter} holds what is no sum of squares; measure it again"
    return StatisticsInvalidError(msg, parameter=parameter)
