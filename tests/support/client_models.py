"""Small models for the client's tests, written byte by byte without torch."""

import json
import math
import random
from pathlib import Path

from gramfuse_shared.contract.fisher_file import METADATA_KEY as FISHER_METADATA_KEY
from gramfuse_shared.contract.fisher_file import FisherMetadata
from gramfuse_shared.contract.manifest import CollectorSettings, LayerInfo, TapInfo
from gramfuse_shared.contract.privacy import Noised
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, FLOAT_DTYPES, format_header
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name, packed_length

WIDTH = 8
VOCABULARY = 40
SHAPES = {
    "encoder.embeddings.word_embeddings.weight": ("F32", (VOCABULARY, WIDTH)),
    "encoder.embeddings.position_ids": ("I64", (1, 16)),
    "encoder.layer.0.dense.weight": ("F32", (WIDTH, WIDTH)),
    "encoder.layer.0.dense.bias": ("F32", (WIDTH,)),
    "encoder.layer.1.dense.weight": ("BF16", (WIDTH, WIDTH)),
    "encoder.layer.1.norm.weight": ("F16", (3,)),
    "classifier.weight": ("F32", (5, WIDTH)),
}


def values(seed: int, name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return random bytes; of floats finite ones, whose exponents lack a bit."""
    found = bytearray(random.Random(f"{seed} {name}").randbytes(math.prod(shape) * DTYPE_BYTES[dtype]))
    if dtype in FLOAT_DTYPES:
        size = DTYPE_BYTES[dtype]
        found[size - 1 :: size] = bytes(top & 0xBF for top in found[size - 1 :: size])
    return bytes(found)


def write_safetensors(path: Path, shapes, seed: int, metadata=None, same=frozenset()) -> Path:
    """Write tensors of random bytes; those named in `same` have the bytes of seed 0."""
    content = format_header([(name, dtype, shape) for name, (dtype, shape) in shapes.items()], metadata)
    for name, (dtype, shape) in shapes.items():
        content += values(0 if name in same else seed, name, dtype, shape)
    path.write_bytes(content)
    return path


def write_model(folder: Path, seed: int = 0, *, shapes=SHAPES, same=frozenset(), shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    config = {"model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        write_safetensors(folder / "model.safetensors", shapes, seed, {"format": "pt"}, same)
        return folder
    names = sorted(shapes)
    weight_map = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(weight_map.values())):
        part = {name: shapes[name] for name in names if weight_map[name] == shard}
        write_safetensors(folder / shard, part, seed, {"format": "pt"}, same)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tap(name: str, *weights: str, width: int = WIDTH, rows: int = 10_000, distinct_rows: int = 9_000, source="mixed"):
    layers = tuple(LayerInfo(weight=weight) for weight in weights)
    return TapInfo(name=name, width=width, rows=rows, distinct_rows=distinct_rows, source=source, layers=layers)


TAPS = (
    tap("encoder.layer.0.dense", "encoder.layer.0.dense.weight", source="embeddings"),
    tap("encoder.layer.1.dense", "encoder.layer.1.dense.weight"),
    tap("classifier", "classifier.weight"),
)


def statistics_metadata(taps=TAPS, base: str | None = None, noised: Noised | None = None) -> StatisticsMetadata:
    collector = CollectorSettings(collector_version="0.1.0", noised=noised)
    return StatisticsMetadata(base=base, collector=collector, taps=taps)


def write_statistics(
    path: Path, taps=TAPS, base: str | None = None, seed: int = 1, noised: Noised | None = None
) -> Path:
    metadata = statistics_metadata(taps, base, noised)
    shapes = {gram_tensor_name(tap.name): ("F32", (packed_length(tap.width),)) for tap in metadata.taps}
    return write_safetensors(path, shapes, seed, {METADATA_KEY: metadata.canonical().decode()})


def fisher_metadata(*, examples: int = 200, base: str | None = None, shapes=SHAPES) -> FisherMetadata:
    """Fisher information of every floating-point tensor; what the first layer and the embeddings have read is told."""
    parameters = [
        {
            "name": name,
            "shape": shape,
            "norm": 1.0,
            "source": "mixed" if "layer.1" in name or "class" in name else "embeddings",
        }
        for name, (dtype, shape) in shapes.items()
        if dtype != "I64"
    ]
    document = {"examples": examples, "distinct_examples": examples, "base": base, "parameters": parameters}
    return FisherMetadata.model_validate(document | {"collector": {"collector_version": "0.1.0"}})


def write_fisher(
    path: Path, *, examples: int = 200, base: str | None = None, metadata: FisherMetadata | None = None
) -> Path:
    metadata = metadata or fisher_metadata(examples=examples, base=base)
    shapes = {parameter.name: ("F32", parameter.shape) for parameter in metadata.parameters}
    return write_safetensors(path, shapes, 1, {FISHER_METADATA_KEY: metadata.canonical().decode()})
