"""Numerical checks of an upload: weights are finite, a Gram matrix is one, Fisher information is squares.

What a contribution may hold decides what a merge may compute: one NaN would spread to the whole model, one indefinite
matrix would silently turn a layer into an average.
"""

from collections.abc import Callable
from typing import Final, NoReturn

import torch

from gramfuse_shared.contract.faults import GRAM_NOT_FINITE, fisher_fault, tap_fault, weights_fault
from gramfuse_shared.contract.fisher_file import LARGEST_VALUE, FisherMetadata
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import (
    INT16_ONE,
    StatisticsMetadata,
    gram_tensor_name,
    packed_length,
    products_of_tap,
)
from gramfuse_shared.errors import StatisticsInvalidError, StatisticsMalformedError
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.least_squares import DEAD_BELOW
from gramfuse_shared.fusion.workspace import is_finite
from gramfuse_shared.merging.schedule import element_ranges
from gramfuse_shared.merging.streaming import TensorReader

SYMMETRY_TOLERANCE: Final = 1e-5
"""Of g_ij − g_ji, in units of √(g_ii g_jj): rounding of a product of float32 rows stays well below."""

DEFINITENESS_TOLERANCE: Final = 1e-4
"""Added to the Jacobi-scaled matrix: an honest Gram matrix with fewer rows than features has eigenvalues of ±1e-6."""

CONSTANT_TOLERANCE: Final = 1e-6
"""Of the sum of ones, in units of the rows: a whole number, rounded to float32 once."""

NORM_TOLERANCE: Final = 1e-6
"""Of a norm, in units of it: sums of squares in float64 agree to 1e-9 in any order."""


def definiteness_tolerance(metadata: StatisticsMetadata, width: int) -> float:
    """Return what is added to a tap's Jacobi-scaled matrix before it must factorize.

    Rounding to int16 adds a symmetric matrix of independent errors of standard deviation 1/(32767·√12), whose norm is
    2·√width times that (Wigner's semicircle); twice the norm is allowed.
    """
    rounding = 4 * width**0.5 / (INT16_ONE * 12**0.5) if metadata.encoding == "int16" else 0.0
    return DEFINITENESS_TOLERANCE + rounding


def inspect_weights(weights: TensorReader, on_progress: Callable[[int], None] = lambda _: None) -> None:
    """Require that every floating-point value is finite. Reads each tensor once, in chunks.

    Args:
        weights: the file.
        on_progress: called with the bytes of each read.

    Raises:
        WeightsInvalidError: NaN or infinity; the message names the tensor.
        FileUnreadableError: the file cannot be read.
    """
    for name, entry in weights.tensors.items():
        count = torch.Size(entry.shape).numel()
        for start, stop in element_ranges(count, DTYPE_BYTES[entry.dtype]):
            chunk = weights.read_elements(name, start, stop)
            on_progress(chunk.numel() * chunk.element_size())
            if chunk.is_floating_point() and not is_finite(chunk):
                raise weights_fault(name)


def inspect_statistics(
    statistics: TensorReader,
    metadata: StatisticsMetadata,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    device: torch.device | None = None,
) -> None:
    """Require that every tap's matrix could be XᵀX of real rows. Reads each tap once.

    Checked per tap, in this order:
      1. packed, of the length that the width says, finite,
      2. the diagonal is not negative,
      3. the diagonal tiles are symmetric to `SYMMETRY_TOLERANCE`,
      4. scaled to a unit diagonal and with `definiteness_tolerance` added, it factorizes,
      5. of a head, or of layers that are to be refit: the constant's square is the number of rows; every product is
         finite, and zero where a feature is.

    Args:
        statistics: the file, decoded.
        metadata: its metadata, already checked against its header.
        on_progress: called with the bytes of each read.
        device: where to factorize; the CPU by default.

    Raises:
        StatisticsInvalidError: any of the above; the message names the tap.
        StatisticsMalformedError: a tap's tensor is missing or of another length or dtype.
        FileUnreadableError: the file cannot be read.
    """
    for tap in metadata.taps:
        name = gram_tensor_name(tap.name)
        entry = statistics.tensors.get(name)
        if entry is None or entry.dtype != "F32" or entry.shape != (packed_length(tap.width),):
            msg = (
                f"tensor {name} is not the packed float32 matrix of {tap.width} features that tap {tap.name} announces"
            )
            raise StatisticsMalformedError(msg)
        gram = statistics.read(name)
        on_progress(gram.numel() * gram.element_size())
        tolerance = definiteness_tolerance(metadata, tap.width)
        reason = _find_fault(gram.to(device or torch.device("cpu")), tap, tolerance)
        if reason is not None:
            raise tap_fault(tap.name, reason)
        # 5.
        products = products_of_tap(tap, metadata.labels)
        if not products:
            continue
        energy = packing.diagonal(gram, tap.width)
        if abs(float(energy[-1]) - tap.rows) > CONSTANT_TOLERANCE * tap.rows:
            reason = f"the constant's square is {float(energy[-1]):g} with {tap.rows} rows"
            _refuse_products(tap, metadata, reason)
        for product, _ in products:
            values = statistics.read(product)
            on_progress(values.numel() * values.element_size())
            if not is_finite(values):
                _refuse_products(tap, metadata, f"the {_product_of(metadata)} holds NaN or infinity")
            if bool((values[energy <= DEAD_BELOW] != 0).any()):
                _refuse_products(tap, metadata, f"a feature that no row has has a {_product_of(metadata)}")


def _product_of(metadata: StatisticsMetadata) -> str:
    return f"product with the {'logits' if metadata.kind == 'head' else 'differences'}"


def _refuse_products(tap: TapInfo, metadata: StatisticsMetadata, reason: str) -> NoReturn:
    msg = f"{metadata.kind} {tap.name}: {reason}; collect its statistics again"
    raise StatisticsInvalidError(msg, tap=tap.name)


def inspect_fisher(
    fisher: TensorReader, metadata: FisherMetadata, on_progress: Callable[[int], None] = lambda _: None
) -> None:
    """Require that every value could be a sum of squares, and every norm is what it is said to be. Reads each once.

    Args:
        fisher: the file.
        metadata: its metadata, already checked against its header.
        on_progress: called with the bytes of each read.

    Raises:
        StatisticsInvalidError: a value is negative, NaN or above `LARGEST_VALUE`, or a norm is another; the message
            names the parameter.
        FileUnreadableError: the file cannot be read.
    """
    for parameter in metadata.parameters:
        squares = 0.0
        for start, stop in element_ranges(torch.Size(parameter.shape).numel(), DTYPE_BYTES["F32"]):
            values = fisher.read_elements(parameter.name, start, stop)
            on_progress(values.numel() * values.element_size())
            if values.numel() and not bool((values.amin() >= 0) & (values.amax() <= LARGEST_VALUE)):  # NaN fails both
                raise fisher_fault(parameter.name)
            squares += float(values.double().square().sum())
        norm = squares**0.5
        if abs(norm - parameter.norm) > NORM_TOLERANCE * norm:
            msg = f"the Fisher information of {parameter.name} has the norm {norm:g}, not {parameter.norm:g}"
            raise StatisticsInvalidError(msg, parameter=parameter.name)


def _find_fault(gram: torch.Tensor, tap: TapInfo, tolerance: float) -> str | None:
    # 1.
    if not is_finite(gram):
        return GRAM_NOT_FINITE
    # 2.
    energy = packing.diagonal(gram, tap.width)
    if bool((energy < 0).any()):
        return f"feature {int(energy.argmin())} has a negative sum of squares"
    # Features below float32's reach are scaled as if they had the least that counts. A Gram matrix stays one then, and
    # a feature of no energy whose products with others are not zero, which no rows can have, is found in step 4.
    scale = energy.double().clamp(min=DEAD_BELOW).rsqrt()
    # 3.
    for start, end, block in packing.block_rows(gram, tap.width):
        tile = block[:, start:end].double() * scale[start:end, None] * scale[start:end]
        if float((tile - tile.T).abs().max()) > SYMMETRY_TOLERANCE:
            return f"the Gram matrix is not symmetric among features {start} to {end - 1}"
    # 4.
    if not any(_factorizes(gram, tap.width, scale, tolerance, dtype) for dtype in (torch.float32, torch.float64)):
        return "the Gram matrix is not positive semi-definite, so it cannot be a sum of products of real rows"
    return None


def _factorizes(gram: torch.Tensor, width: int, scale: torch.Tensor, tolerance: float, dtype: torch.dtype) -> bool:
    """Try the factorization. Float32 first, since it is faster and a success there is a proof within the tolerance."""
    # scaled in float64: the scale of a nearly dead feature times its products may leave float32's range
    matrix = packing.unpack_lower(gram, width, dtype=torch.float64)
    matrix = matrix.mul_(scale[:, None]).mul_(scale).to(dtype)
    matrix.diagonal().add_(tolerance)
    lower, info = torch.linalg.cholesky_ex(matrix)
    return int(info) == 0 and is_finite(lower.diagonal())
