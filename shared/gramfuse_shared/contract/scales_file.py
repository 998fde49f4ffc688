"""The scales file: how large the base model's features and examples are on public text, for all of a project alike.

A safetensors file with one tensor per tap, `mean_square.<tap>`, F32 [width]: the mean of the square of each feature
that the tap's layers read, floored, so that dividing by it is safe. The metadata key `gramfuse.scales` holds
`ScalesMetadata`. A project has at most one, under the name `SCALES_FILE_NAME` beside its base model; the policy names
its digest. Nothing in it comes from private text.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import TapInfo, Taps, kind_of_statistics, require_distinct_taps
from gramfuse_shared.contract.safetensors_header import Header, TensorLayout, odd_tensors
from gramfuse_shared.errors import DocumentMalformedError, ScalesMalformedError
from gramfuse_shared.identifiers import VERSION_PATTERN, Digest

SCALES_FILE_NAME: Final = "scales.safetensors"
METADATA_KEY: Final = "gramfuse.scales"
MEAN_SQUARE_PREFIX: Final = "mean_square."

FLOOR: Final = 1e-4
"""Of a tap's mean square over all features: no feature's mean square is given as less. A feature that public text
hardly ever moves would otherwise be blown up without bound where private text does move it."""


class ScalesMetadata(Document):
    """What the tensors of a scales file mean, and how they were measured.

    `clip` is C, the bound on the joint norm of one example: the root of Σ over taps of ‖mean of z zᵀ‖², z a row divided
    by its features' root mean squares and √width. It is the `clip_percentile` of that norm over the public examples.
    """

    format: Literal["gramfuse/scales/1"] = "gramfuse/scales/1"
    base: Digest
    collector_version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    examples: Annotated[int, Field(ge=1, le=limits.MAX_ROWS)]
    clip: Annotated[float, Field(gt=0, le=1e6)]
    clip_percentile: Annotated[float, Field(gt=0, le=100)]
    taps: Annotated[Taps, Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        require_distinct_taps(self.taps)
        if kind_of_statistics(None, self.taps) != "gram":
            msg = "scales are of what layers read, and no layer of theirs has outputs"
            raise ValueError(msg)
        return self


def mean_square_tensor_name(tap: str) -> str:
    """Name of the tensor that holds the mean squares of a tap's features."""
    return MEAN_SQUARE_PREFIX + tap


def tensors_of_scales(taps: tuple[TapInfo, ...]) -> list[TensorLayout]:
    """List the tensors of a scales file in file order."""
    return [(mean_square_tensor_name(tap.name), "F32", (tap.width,)) for tap in taps]


def parse_scales_metadata(header: Header) -> ScalesMetadata:
    """Read the metadata of a scales file and check that its tensors are just the ones it describes.

    Raises:
        ScalesMalformedError: metadata missing or malformed, other text beside it, or a tensor missing, spare, or of
            another shape or dtype.
    """
    raw = header.metadata.get(METADATA_KEY)
    if raw is None:
        msg = f"no {METADATA_KEY!r} in the metadata: this is not a scales file; `gramfuse scales collect` makes one"
        raise ScalesMalformedError(msg)
    if len(header.metadata) > 1:
        msg = f"the metadata holds more than {METADATA_KEY!r}"
        raise ScalesMalformedError(msg)
    try:
        metadata = ScalesMetadata.parse(raw)
    except DocumentMalformedError as error:
        raise ScalesMalformedError(error.message) from error
    detail = odd_tensors(header, tensors_of_scales(metadata.taps), f"for {len(metadata.taps)} taps")
    if detail is not None:
        msg = f"the tensors are not the mean squares of the described taps: {detail}"
        raise ScalesMalformedError(msg)
    return metadata
