"""What the optional parts of the client bring."""

from types import MappingProxyType
from typing import Final

_COLLECT: Final = (
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "datasets",
    "tokenizers",
    "scipy",
    "sklearn",
    "nervaluate",
)

EXTRAS: Final = MappingProxyType(dict.fromkeys(_COLLECT, "collect") | {"matplotlib": "report"})
"""Package to the extra that brings it."""
