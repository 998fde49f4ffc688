"""Tiny base models and contributions with real Gram matrices, so that every number passes the server's inspection."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gramfuse_shared.contract.manifest import (
    BaseManifest,
    CollectorSettings,
    ContributionManifest,
    TapInfo,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name
from gramfuse_shared.digest import sha256_hex

WIDTH: Final = 64
ROWS: Final = 256
VOCABULARY: Final = 31
LINEARS: Final = ("query", "key", "value")
POLICY: Final = Policy(minimum_cohort=2, cohorts="open", minimum_rows_per_dimension=1.0)

Tensor = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Upload:
    """A manifest and the files that it announces."""

    manifest: BaseManifest | ContributionManifest
    files: Mapping[str, bytes]

    @property
    def id(self) -> str:
        """A contribution's id."""
        return self.manifest.content_digest()


def make_base(seed: int, *, layers: int) -> Upload:
    """A base model of so many layers."""
    chance = np.random.default_rng(seed)
    tensors = [("embeddings.word_embeddings.weight", "F32", (VOCABULARY, WIDTH)), *_body(layers)]
    weights = _file(tensors, chance)
    config = json.dumps({"model_type": "tiny", "vocab_size": VOCABULARY}).encode()
    files = {"config.json": config, "model.safetensors": weights}
    entries = [_entry(name, content) for name, content in files.items()]
    entries[1]["tensors"] = _documents(tensors)
    return Upload(BaseManifest.model_validate({"files": entries, "vocabulary_size": VOCABULARY}), files)


def make_contribution(project: Mapping[str, Any], organization: str, seed: int, *, layers: int) -> Upload:
    """A contribution to a project as it stands in the API's answer: weights, and one Gram matrix a layer."""
    chance = np.random.default_rng(seed)
    tensors = _body(layers)
    taps = tuple(_tap(layer) for layer in range(layers))
    collector = CollectorSettings(collector_version="0.1.0")
    told = StatisticsMetadata(base=project["base"], collector=collector, taps=taps).model_dump_json()
    grams = [_gram(chance) for _ in taps]
    header = format_header(
        [(gram_tensor_name(tap.name), "F32", (WIDTH * WIDTH,)) for tap in taps], {METADATA_KEY: told}
    )
    weights, statistics = _file(tensors, chance), header + b"".join(grams)
    document = {
        "project": project["id"],
        "organization": organization,
        "base": project["base"],
        "policy": project["policy"],
        "weights": {"file": _entry("weights.safetensors", weights), "tensors": _documents(tensors)},
        "statistics": {
            "file": _entry("statistics.safetensors", statistics),
            "taps": [tap.model_dump(mode="json") for tap in taps],
            "collector": collector.model_dump(mode="json"),
        },
    }
    files = {"weights.safetensors": weights, "statistics.safetensors": statistics}
    return Upload(ContributionManifest.model_validate(document), files)


def _body(layers: int) -> list[Tensor]:
    return [
        (f"encoder.{layer}.{linear}.weight", "F32", (WIDTH, WIDTH)) for layer in range(layers) for linear in LINEARS
    ]


def _tap(layer: int) -> TapInfo:
    read_by = [{"weight": f"encoder.{layer}.{linear}.weight"} for linear in LINEARS]
    told = {"name": f"encoder.{layer}", "width": WIDTH, "rows": ROWS, "distinct_rows": ROWS, "source": "mixed"}
    return TapInfo.model_validate(told | {"layers": read_by})


def _gram(chance: np.random.Generator) -> bytes:
    inputs = chance.standard_normal((ROWS, WIDTH), dtype=np.float32)
    return np.ascontiguousarray(inputs.T @ inputs).tobytes()  # narrower than a block, so it is packed as it is


def _file(tensors: list[Tensor], chance: np.random.Generator) -> bytes:
    values = b"".join(chance.standard_normal(shape, dtype=np.float32).tobytes() for _, _, shape in tensors)
    return format_header(tensors) + values


def _documents(tensors: list[Tensor]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in tensors]


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "bytes": len(content), "sha256": sha256_hex(content)}
