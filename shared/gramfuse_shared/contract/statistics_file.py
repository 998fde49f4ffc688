"""The statistics file: a safetensors file with one packed Gram matrix per tap.

Tensor `gram.<tap>` is F32 of one dimension: the block rows `G[s:e, :e]` of the raw sum G = XᵀX, blocks of 128 in
order, each row-major, one behind the other. The metadata key `gramfuse.statistics` holds `StatisticsMetadata`.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import CollectorSettings, TapInfo, Taps
from gramfuse_shared.contract.safetensors_header import Header
from gramfuse_shared.errors import DocumentMalformedError, StatisticsMalformedError
from gramfuse_shared.identifiers import Digest

BLOCK: Final = 128
"""Rows of a block row; also the granularity at which symmetry is checked."""

METADATA_KEY: Final = "gramfuse.statistics"
GRAM_PREFIX: Final = "gram."


class StatisticsMetadata(Document):
    """What the tensors of a statistics file mean. `base` is absent where statistics were measured without a project."""

    format: Literal["gramfuse/statistics/1"] = "gramfuse/statistics/1"
    base: Digest | None = None
    collector: CollectorSettings
    taps: Annotated[Taps, Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [tap.name for tap in self.taps]
        weights = [layer.weight for tap in self.taps for layer in tap.layers]
        if len(set(names)) != len(names) or len(set(weights)) != len(weights):
            msg = "a tap or a layer is named twice"
            raise ValueError(msg)
        return self


def packed_length(width: int) -> int:
    """Number of values of a packed Gram matrix: Σ (e − s)·e over blocks [s, e) of `BLOCK` rows."""
    whole, rest = divmod(width, BLOCK)
    return BLOCK * BLOCK * whole * (whole + 1) // 2 + rest * width


def gram_tensor_name(tap: str) -> str:
    """Name of the tensor that holds a tap's packed Gram matrix."""
    return GRAM_PREFIX + tap


def parse_statistics_metadata(header: Header) -> StatisticsMetadata:
    """Read the metadata of a statistics file and check that its tensors are just the ones it describes.

    Raises:
        StatisticsMalformedError: metadata missing or malformed, a tensor missing, spare, or of another shape or dtype.
    """
    raw = header.metadata.get(METADATA_KEY)
    if raw is None:
        msg = f"no {METADATA_KEY!r} in the metadata: this is not a statistics file"
        raise StatisticsMalformedError(msg)
    try:
        metadata = StatisticsMetadata.parse(raw)
    except DocumentMalformedError as error:
        raise StatisticsMalformedError(error.message) from error
    require_tensors_of_taps(header, metadata.taps)
    return metadata


def require_tensors_of_taps(header: Header, taps: tuple[TapInfo, ...]) -> None:
    """Require that the tensors are the packed Gram matrices of these taps, in this order, and nothing else.

    Raises:
        StatisticsMalformedError: otherwise.
    """
    expected = [(gram_tensor_name(tap.name), "F32", (packed_length(tap.width),)) for tap in taps]
    found = [(entry.name, entry.dtype, entry.shape) for entry in header.tensors.values()]
    if found != expected:
        odd = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), None)
        detail = f"found {odd[0]}, expected {odd[1]}" if odd else f"{len(found)} tensors for {len(expected)} taps"
        msg = f"the tensors are not the packed Gram matrices of the described taps: {detail}"
        raise StatisticsMalformedError(msg)
