"""What one CUDA device does: collecting beside a bfloat16 forward pass, and merging layers of a 7B model from files.

    PYTHONPATH=client:server:shared python benchmarks/cuda_device.py [--folder DIR] [--out FILE]

Needs what `make gpu` needs and about 18 GB of disk. Times are medians of five; the device is synchronized around each.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from published import PublishedHooks

from gramfuse.local_merging import merge
from gramfuse.measuring.collection import Collector
from gramfuse_shared.contract.manifest import CollectorSettings, LayerInfo, TapInfo, TensorInfo
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.cholesky import Factor
from gramfuse_shared.merging.writing import ShardWriter

DEVICE: Final = torch.device("cuda")
HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 4096, 11008, 32000, 32  # Llama 2 7B
MEASURED_LAYERS: Final = 4
MERGED_LAYERS: Final = (1, 4)
MEMBERS: Final = 4
REPETITIONS: Final = 5
BATCHED: Final = 12  # layers of one shape
BATCHED_WIDTHS: Final = (384, 768, 1536, 4096)
TAPS: Final = {  # per layer: what reads the tap, and how wide it is
    "attention": (("q_proj", "k_proj", "v_proj"), HIDDEN),
    "output": (("o_proj",), HIDDEN),
    "mlp": (("gate_proj", "up_proj"), HIDDEN),
    "down": (("down_proj",), INTERMEDIATE),
}
HEIGHTS: Final = {"gate_proj": INTERMEDIATE, "up_proj": INTERMEDIATE}


def median_seconds(
    run: Callable[[], object], *, before: Callable[[], object] = lambda: None, repetitions: int = REPETITIONS
) -> float:
    """Return the median time of a call, after one that warms up; `before` each is not counted."""
    seconds = []
    for repetition in range(repetitions + 1):
        before()
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if repetition:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure_machine() -> dict[str, Any]:
    """Measure products of 4096² matrices in TFLOP/s, and copies from pinned memory in GB/s."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    size = 4096
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
        found[f"gemm_{name}_tflops"] = round(2 * size**3 / median_seconds(lambda a=left, b=right: a @ b) / 1e12, 1)
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(host, device=DEVICE)
    found["pinned_to_device_gbs"] = round(host.numel() / median_seconds(lambda: target.copy_(host)) / 1e9, 1)
    return found


# --- collecting ------------------------------------------------------------------------------------------------------


def measure_collecting(*, padded: bool) -> dict[str, Any]:
    """Measure hooks beside a bfloat16 forward pass of 7B layers, 8 texts of up to 512 tokens, without the head."""
    from transformers import LlamaConfig, LlamaModel  # noqa: PLC0415 - the merge needs none of it

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=MEASURED_LAYERS,
        num_attention_heads=32,
        vocab_size=VOCABULARY,
    )
    with DEVICE:
        model = LlamaModel(config).to(torch.bfloat16).eval()
        lengths = torch.randint(64, 512, (8,)) if padded else torch.full((8,), 512)
        mask = (torch.arange(512)[None] < lengths[:, None]).long()
        batch = {"input_ids": torch.randint(3, VOCABULARY, (8, 512)) * mask, "attention_mask": mask, "use_cache": False}

    def forward() -> None:
        model(**batch)

    with torch.no_grad():
        plain = median_seconds(forward)
        with Collector(model):
            forward()
            own = count_waits(forward)
            hooked = median_seconds(forward)
        with PublishedHooks(model):
            published_seconds = median_seconds(forward)
        elsewhere = count_waits(forward)
    return {
        "forward_ms": round(plain * 1e3, 2),
        "hooks_over_forward": round(hooked / plain, 3),
        "published_hooks_over_forward": round(published_seconds / plain, 3),
        "waits_for_the_device_per_pass": own - elsewhere,
    }


def count_waits(run: Callable[[], object]) -> int:
    """Count the calls that make the program wait for the device, as far as torch notices them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len([warning for warning in caught if "synchroniz" in str(warning.message)])


# --- merging ---------------------------------------------------------------------------------------------------------


def write_member(folder: Path, layers: int, seed: int) -> None:
    """Write a member's weights, bfloat16, and statistics of random rows."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.manual_seed(seed)
    names = [
        f"layers.{layer}.{name}.weight" for layer in range(layers) for readers, _ in TAPS.values() for name in readers
    ]
    widths = {name: width for readers, width in TAPS.values() for name in readers}
    shapes = {name: (HEIGHTS.get(name.split(".")[2], HIDDEN), widths[name.split(".")[2]]) for name in names}
    tensors = [TensorInfo(name=name, dtype="BF16", shape=shapes[name]) for name in names]
    with ShardWriter(folder / "model.safetensors", tensors, {"format": "pt"}) as shard:
        for name in names:
            shard.write(name, (0.02 * torch.randn(shapes[name], device=DEVICE)).bfloat16())
    taps, grams = [], {}
    for layer in range(layers):
        for tap, (readers, width) in TAPS.items():
            rows = torch.randn(2 * width, width, device=DEVICE) @ (
                torch.eye(width, device=DEVICE) + 0.3 * torch.randn(width, width, device=DEVICE) / width**0.5
            )
            grams[f"layers.{layer}.{tap}"] = packing.pack(rows.T @ rows)
            info = TapInfo(
                name=f"layers.{layer}.{tap}",
                width=width,
                rows=40 * width,
                distinct_rows=40 * width,
                source="mixed",
                layers=tuple(LayerInfo(weight=f"layers.{layer}.{name}.weight") for name in readers),
            )
            taps.append(info)
    metadata = StatisticsMetadata(collector=CollectorSettings(collector_version="0"), taps=tuple(taps))
    entries = [
        TensorInfo(name=gram_tensor_name(tap.name), dtype="F32", shape=tuple(grams[tap.name].shape)) for tap in taps
    ]
    with ShardWriter(folder / "statistics.safetensors", entries, {METADATA_KEY: metadata.model_dump_json()}) as shard:
        for tap in taps:
            shard.write(gram_tensor_name(tap.name), grams[tap.name])


def merge_flops(layers: int, members: int) -> float:
    """Count the operations of a merge: products of differences but the reference's, factors, substitutions."""
    total = 0.0
    for readers, width in TAPS.values():
        height = sum(HEIGHTS.get(name, HIDDEN) for name in readers)
        total += (members - 1) * 2 * height * width**2 + width**3 / 3 + 2 * height * width**2
    return layers * total


def measure_batching(width: int) -> dict[str, float]:
    """Measure the solves of twelve layers of one shape, one after the other as the merge does, and as one batch."""
    rows = torch.randn(BATCHED, 2 * width, width, device=DEVICE)
    grams = rows.mT @ rows / (2 * width)
    products = torch.randn(BATCHED, 3 * width, width, device=DEVICE)
    del rows
    beside = torch.empty_like(products[0])
    # a factor and a solution overwrite what they are given, so both ways begin with the same copies
    square, right = torch.empty_like(grams), torch.empty_like(products)

    def begin() -> None:
        square.copy_(grams)
        right.copy_(products)

    def in_turn() -> None:
        for gram, product in zip(square, right, strict=True):
            factor = Factor.of(gram)
            assert factor is not None  # noqa: S101 - rows enough
            factor.solve_(product, beside)

    def at_once() -> None:
        lower, info = torch.linalg.cholesky_ex(square)
        assert not bool(info.any())  # noqa: S101 - rows enough
        torch.cholesky_solve(right.mT, lower)

    return {
        f"{name}_ms_per_layer": round(median_seconds(run, before=begin) / BATCHED * 1e3, 3)
        for name, run in (("in_turn", in_turn), ("batched", at_once))
    }


def measure_merging(folder: Path, gemm_tflops: float) -> dict[str, Any]:
    """Measure merges of 7B layers from files that the page cache holds; the slope is what each further layer takes."""
    fewest, most = MERGED_LAYERS
    seconds = {layers: time_merge(folder / str(layers), layers) for layers in MERGED_LAYERS}
    read = sum(path.stat().st_size for path in (folder / str(most)).glob("member-*/*.safetensors")) / most
    a_layer = (seconds[most] - seconds[fewest]) / (most - fewest)
    tflop = merge_flops(1, MEMBERS) / 1e12
    return {
        "members": MEMBERS,
        "seconds": {str(layers): round(time, 3) for layers, time in seconds.items()},
        "seconds_per_layer": round(a_layer, 3),
        "seconds_of_32_layers": round(seconds[fewest] + (LAYERS - fewest) * a_layer, 1),
        "input_gb_per_layer": round(read / 1e9, 2),
        "input_gbs": round(read / a_layer / 1e9, 2),
        "tflop_per_layer": round(tflop, 2),
        "share_of_flop_bound": round(tflop / gemm_tflops / a_layer, 3),
        "peak_device_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6),
    }


def time_merge(folder: Path, layers: int) -> float:
    """Return the median seconds of a merge of that many layers, whose files are written first."""
    folder.mkdir()
    for member in range(MEMBERS):
        write_member(folder / f"member-{member}", layers, member)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    models = tuple({"model": str(folder / f"member-{member}")} for member in range(MEMBERS))
    recipe = Recipe.model_validate({"merge_method": "regmean", "models": models})
    return median_seconds(lambda: merge(recipe, folder / "merged", device="cuda", overwrite=True))


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models are written (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    result: dict[str, Any] = {"machine": measure_machine()}
    result["collect"] = {
        "full": measure_collecting(padded=False),
        "padded": measure_collecting(padded=True),
    }
    result["solve_layers_of_one_shape"] = {str(width): measure_batching(width) for width in BATCHED_WIDTHS}
    with TemporaryDirectory(dir=options.folder) as folder:
        result["merge"] = measure_merging(Path(folder), result["machine"]["gemm_fp32_tflops"])
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
