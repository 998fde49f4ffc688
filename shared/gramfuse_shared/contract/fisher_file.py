"""The file of Fisher information: a safetensors file with one tensor per parameter, of the parameter's name and shape.

F32, raw sums of squares. The metadata key `gramfuse.fisher` holds `FisherMetadata`, which lists the parameters in the
order of the file.
"""

from collections.abc import Sequence
from typing import Final, Literal

from gramfuse_shared.contract.manifest import FisherDescription, FisherParameter
from gramfuse_shared.contract.safetensors_header import Header, TensorLayout, odd_tensors
from gramfuse_shared.errors import DocumentMalformedError, StatisticsMalformedError
from gramfuse_shared.identifiers import Digest

METADATA_KEY: Final = "gramfuse.fisher"

LARGEST_VALUE: Final = 1e30
"""Above this a value is refused: the sum of a cohort's, times differences, would leave float32's range. Gradients of
1e15, of which it would take one, mean that the loss has overflowed long before."""


class FisherMetadata(FisherDescription):
    """What the tensors of the file mean. `base` is absent where they were measured without a project."""

    format: Literal["gramfuse/fisher/1"] = "gramfuse/fisher/1"
    base: Digest | None = None


def tensors_of_fisher(parameters: Sequence[FisherParameter]) -> list[TensorLayout]:
    """List the tensors of the file in file order."""
    return [(parameter.name, "F32", parameter.shape) for parameter in parameters]


def parse_fisher_metadata(header: Header) -> FisherMetadata:
    """Read the metadata of the file and check that its tensors are just the ones it describes.

    Raises:
        StatisticsMalformedError: metadata missing or malformed, a tensor missing, spare, or of another shape or dtype.
    """
    raw = header.metadata.get(METADATA_KEY)
    if raw is None:
        what = "this is not a file of Fisher information; `gramfuse stats fisher` makes one"
        msg = f"no {METADATA_KEY!r} in the metadata: {what}"
        raise StatisticsMalformedError(msg)
    try:
        metadata = FisherMetadata.parse(raw)
    except DocumentMalformedError as error:
        raise StatisticsMalformedError(error.message) from error
    described = f"of {len(metadata.parameters)}"
    detail = odd_tensors(header, tensors_of_fisher(metadata.parameters), described)
    if detail is not None:
        msg = f"the tensors are not the Fisher information of the described parameters: {detail}"
        raise StatisticsMalformedError(msg)
    return metadata
