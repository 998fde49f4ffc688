"""Reads a scales file that nobody trusts: header, metadata, and every value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from gramfuse_shared.contract.scales_file import ScalesMetadata, mean_square_tensor_name, parse_scales_metadata
from gramfuse_shared.errors import ScalesMalformedError
from gramfuse_shared.merging.streaming import LocalFile, TensorFile


@dataclass(frozen=True, slots=True)
class Scales:
    """How large the base model's features are on public text.

    Attributes:
        metadata: taps, layers, the base's fingerprint, the clip.
        mean_squares: by tap, fp32 [width], every value finite and positive.
    """

    metadata: ScalesMetadata
    mean_squares: Mapping[str, torch.Tensor]

    def root_mean_squares(self, tap: str) -> torch.Tensor:
        """Return the root mean square of each feature of a tap, float64 [width]."""
        return self.mean_squares[tap].double().sqrt()


def load_scales(path: Path) -> Scales:
    """Read a scales file.

    Raises:
        FileUnreadableError: there is no such file.
        HeaderMalformedError, HeaderTooLargeError, ScalesMalformedError: it is not a scales file.
    """
    with LocalFile(path) as source:
        return read_scales(TensorFile.open(source))


def read_scales(file: TensorFile) -> Scales:
    """Read all of a scales file; it is small: one number per feature.

    Raises:
        HeaderMalformedError, ScalesMalformedError: it is not a scales file, or a value is no mean square that can be
            divided by; the message names the tap.
    """
    metadata = parse_scales_metadata(file.header)
    mean_squares = {}
    for tap in metadata.taps:
        values = file.read(mean_square_tensor_name(tap.name))
        if not bool((torch.isfinite(values) & (values > 0)).all()):
            msg = f"a mean square of tap {tap.name} is not a finite number above zero; collect the scales again"
            raise ScalesMalformedError(msg, tap=tap.name)
        mean_squares[tap.name] = values
    return Scales(metadata, MappingProxyType(mean_squares))
