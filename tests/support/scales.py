"""Scales files for tests: of any taps, of any values."""

import struct
from collections.abc import Sequence
from typing import Any

from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.scales_file import METADATA_KEY, ScalesMetadata, tensors_of_scales
from support.server_world import make_tap


def scales_metadata(base: str, taps: Sequence[TapInfo] | None = None, **changes: Any) -> ScalesMetadata:
    """Say what a scales file of these taps would say."""
    document = {
        "base": base,
        "collector_version": "0.1.0",
        "examples": 40,
        "clip": 1.5,
        "clip_percentile": 50.0,
        "taps": [tap.model_dump(mode="json") for tap in taps or (make_tap(),)],
    }
    return ScalesMetadata.model_validate(document | changes)


def scales_bytes(metadata: ScalesMetadata, *, value: float = 0.25) -> bytes:
    """Return a scales file, every mean square of which is the same value."""
    header = format_header(tensors_of_scales(metadata.taps), {METADATA_KEY: metadata.canonical().decode()})
    count = sum(tap.width for tap in metadata.taps)
    return header + struct.pack(f"<{count}f", *[value] * count)
