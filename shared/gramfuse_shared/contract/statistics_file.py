"""The statistics file: a safetensors file with one packed Gram matrix per tap.

Packed are the block rows `G[s:e, :e]` of the raw sum G = XᵀX, blocks of 128 in order, each row-major, one behind the
other. `gram.<tap>` is that as F32 of one dimension. In the encoding `int16` it is I16 and holds 32767·D^-½GD^-½,
rounded, and `diagonal.<tap>`, F32 [width], holds D = diag G; the diagonals stand before the matrices. The metadata
key `gramfuse.statistics` holds `StatisticsMetadata`.

Files of the kinds `head` and `refit` are never part of a contribution, and the widths of their taps count the constant
1 behind the d features. The one tap of `head` is the head, and `product.<tap>`, F32 [d+1, labels], stands behind the
matrix. Of `refit` each layer has a product, `product.<weight>`, F32 [d+1, outputs]; they stand behind all matrices.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import (
    CollectorSettings,
    LabelCount,
    StatisticsEncoding,
    StatisticsKind,
    StatisticsSection,
    TapInfo,
    Taps,
    kind_of_statistics,
    require_distinct_taps,
    require_one_kind,
)
from gramfuse_shared.contract.safetensors_header import Header, TensorLayout, odd_tensors
from gramfuse_shared.errors import DocumentMalformedError, StatisticsMalformedError
from gramfuse_shared.identifiers import Digest

BLOCK: Final = 128
"""Rows of a block row; also the granularity at which symmetry is checked."""

METADATA_KEY: Final = "gramfuse.statistics"
GRAM_PREFIX: Final = "gram."
DIAGONAL_PREFIX: Final = "diagonal."
PRODUCT_PREFIX: Final = "product."

INT16_ONE: Final = 32_767
"""What stands for 1 in the encoding int16."""

INT16_MOST_ALPHA: Final = 0.99
"""RegMean's largest α for rounded statistics: above, what the off-diagonal loses is not small beside 1 − α."""


class StatisticsMetadata(Document):
    """What the tensors of a statistics file mean. `base` is absent where statistics were measured without a project.

    `kind` is written where it is not `gram`, `labels`, the columns of a head's product, for heads only.
    """

    format: Literal["gramfuse/statistics/1"] = "gramfuse/statistics/1"
    base: Digest | None = None
    collector: CollectorSettings
    encoding: StatisticsEncoding = "float32"
    kind: StatisticsKind = Field(default="gram", exclude_if=lambda value: value == "gram")
    labels: LabelCount | None = Field(default=None, exclude_if=lambda value: value is None)
    taps: Annotated[Taps, Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        require_distinct_taps(self.taps)
        return self

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> Self:
        if self.kind != kind_of_statistics(self.labels, self.taps):
            msg = "labels are counted of a head, outputs of refit layers, and only of these"
            raise ValueError(msg)
        require_one_kind(self.labels, self.taps, self.encoding)
        return self


def packed_length(width: int) -> int:
    """Number of values of a packed Gram matrix: Σ (e − s)·e over blocks [s, e) of `BLOCK` rows."""
    whole, rest = divmod(width, BLOCK)
    return BLOCK * BLOCK * whole * (whole + 1) // 2 + rest * width


def encoded_bytes(width: int, encoding: StatisticsEncoding) -> int:
    """Bytes of one tap's tensors."""
    return 4 * packed_length(width) if encoding == "float32" else 2 * packed_length(width) + 4 * width


def gram_tensor_name(tap: str) -> str:
    """Name of the tensor that holds a tap's packed Gram matrix."""
    return GRAM_PREFIX + tap


def diagonal_tensor_name(tap: str) -> str:
    """Name of the tensor that holds the diagonal of a tap's Gram matrix, in the encoding int16."""
    return DIAGONAL_PREFIX + tap


def product_tensor_name(name: str) -> str:
    """Name of the tensor that holds a product: of a head by its tap, of a layer that is to be refit by its weight."""
    return PRODUCT_PREFIX + name


def products_of_tap(tap: TapInfo, labels: int | None) -> list[tuple[str, int]]:
    """List the products of a tap: the name of its tensor [width, columns], and the columns."""
    if labels is not None:
        return [(product_tensor_name(tap.name), labels)]
    return [(product_tensor_name(layer.weight), layer.outputs) for layer in tap.layers if layer.outputs is not None]


def tensors_of_statistics(described: StatisticsMetadata | StatisticsSection) -> list[TensorLayout]:
    """List the tensors of the file that a metadata document, or a manifest's section, describes, in file order."""
    products: list[TensorLayout] = [
        (name, "F32", (tap.width, columns))
        for tap in described.taps
        for name, columns in products_of_tap(tap, described.labels)
    ]
    return tensors_of_taps(described.taps, described.encoding) + products


def tensors_of_taps(taps: tuple[TapInfo, ...], encoding: StatisticsEncoding) -> list[TensorLayout]:
    """List the tensors of a statistics file in file order."""
    diagonals: list[TensorLayout] = []
    if encoding == "int16":
        diagonals = [(diagonal_tensor_name(tap.name), "F32", (tap.width,)) for tap in taps]
    dtype = "F32" if encoding == "float32" else "I16"
    return diagonals + [(gram_tensor_name(tap.name), dtype, (packed_length(tap.width),)) for tap in taps]


def parse_statistics_metadata(header: Header, *, kind: StatisticsKind = "gram") -> StatisticsMetadata:
    """Read the metadata of a statistics file and check that its tensors are just the ones it describes.

    Raises:
        StatisticsMalformedError: metadata missing or malformed, another kind of file, or a tensor missing, spare, or of
            another shape or dtype.
    """
    raw = header.metadata.get(METADATA_KEY)
    if raw is None:
        msg = f"no {METADATA_KEY!r} in the metadata: this is not a statistics file; `gramfuse stats collect` makes one"
        raise StatisticsMalformedError(msg)
    try:
        metadata = StatisticsMetadata.parse(raw)
    except DocumentMalformedError as error:
        raise StatisticsMalformedError(error.message) from error
    if metadata.kind != kind:
        msg = f"the file holds statistics of the kind {metadata.kind}, and {kind} is needed here"
        raise StatisticsMalformedError(msg)
    detail = odd_tensors(header, tensors_of_statistics(metadata), f"for {len(metadata.taps)} taps")
    if detail is not None:
        msg = f"the tensors are not the packed Gram matrices of the described taps: {detail}"
        raise StatisticsMalformedError(msg)
    return metadata
