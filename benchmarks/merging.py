"""The merge of local folders, files included, beside the published algorithm; its bound, and its memory.

Layers of BERT-base's shapes: q, k and v read one tap, the attention's output, the intermediate and the output layer one
each. Both sides read the models' files and write the result; the published one gets its Gram matrices already loaded,
as its code keeps them in memory.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import gemm_rate
from published import merge as merge_published
from safetensors.torch import load_file, save_file
from timing import Effort, median_seconds

import gramfuse
from gramfuse_shared.contract.manifest import CollectorSettings, LayerInfo, TapInfo
from gramfuse_shared.contract.statistics_file import StatisticsMetadata, gram_tensor_name
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging import exact_products

ALPHA = 0.9
MOST_PUBLISHED = 8  # members: more models and Gram matrices at once than one wants in memory
WIDTH, LAYERS = 768, 3
TAPS = {"attention.qkv": ("q", "k", "v"), "attention.output": ("o",), "up": ("up",), "down": ("down",)}


def write_members(folder: Path, count: int, *, width: int = WIDTH, layers: int = LAYERS) -> list[Path]:
    """Write `from_pretrained`-like folders of random weights with honest Gram matrices; those that are there stay."""
    members = []
    for index in range(count):
        member = folder / f"member-{width}-{layers}-{index}"
        members.append(member)
        if member.exists():
            continue
        generator = torch.Generator().manual_seed(index)
        beside = folder / "unfinished"
        beside.mkdir(parents=True)
        weights: dict[str, torch.Tensor] = {}
        grams: dict[str, torch.Tensor] = {}
        taps = []
        packed = {d: _gram(d, generator) for d in (width, 4 * width)}
        for layer in range(layers):
            for tap, names in TAPS.items():
                inputs = 4 * width if tap == "down" else width
                outputs = 4 * width if tap == "up" else width
                layer_names = [f"layer.{layer}.{name}.weight" for name in names]
                for name in layer_names:
                    weights[name] = torch.randn(outputs, inputs, generator=generator) * 0.03
                taps.append(
                    TapInfo(
                        name=f"layer.{layer}.{tap}",
                        width=inputs,
                        rows=8 * inputs,
                        distinct_rows=8 * inputs,
                        source="mixed",
                        layers=tuple(LayerInfo(weight=name) for name in layer_names),
                    )
                )
                grams[gram_tensor_name(taps[-1].name)] = packed[inputs]
        metadata = StatisticsMetadata(collector=CollectorSettings(collector_version="0"), taps=tuple(taps))
        save_file(weights, beside / "model.safetensors", {"format": "pt"})
        _save_statistics(grams, metadata, beside / "statistics.safetensors")
        (beside / "config.json").write_text("{}")
        beside.rename(member)
    return members


def merge_ours(members: list[Path], target: Path) -> None:
    """Merge folders with the product."""
    shutil.rmtree(target, ignore_errors=True)
    recipe = gramfuse.Recipe.model_validate(
        {
            "merge_method": "regmean",
            "models": [{"model": str(member)} for member in members],
            "parameters": {"alpha": ALPHA},
        }
    )
    gramfuse.merge(recipe, target, device="cpu")


def full_grams(member: Path) -> dict[str, torch.Tensor]:
    """Return a mean Gram matrix for each linear weight, as the published code keeps them."""
    stored = load_file(member / "statistics.safetensors")
    grams = {}
    for tap in _taps(member):
        mean = packing.unpack(stored[gram_tensor_name(tap.name)], tap.width) / tap.rows
        grams |= {layer.weight: mean for layer in tap.layers}
    return grams


def flop_bound(members: list[Path]) -> float:
    """Return FLOP that a merge needs: per tap (n−1)·2md² + d³/3 + 2md², m the stacked outputs of its layers."""
    weights = load_file(members[0] / "model.safetensors")
    total = 0.0
    for tap in _taps(members[0]):
        d, m = tap.width, sum(weights[layer.weight].shape[0] for layer in tap.layers)
        total += (len(members) - 1) * 2 * m * d**2 + d**3 / 3 + 2 * m * d**2
    return total


def measure(folder: Path, effort: Effort) -> dict[str, Any]:
    """Measure against the published merge, against the bound of its products, and without the second CPU route."""
    size = size_of(effort)
    ratios, shares, seconds_of = {}, {}, {}
    for count in (2, 4, 8, 16):
        members = write_members(folder, count, **size)
        candidates = {"ours": lambda members=members: merge_ours(members, folder / "ours")}
        if count <= MOST_PUBLISHED:
            grams = [full_grams(member) for member in members]
            candidates["published"] = lambda members=members, grams=grams: _published(members, grams, folder)
        seconds = median_seconds(candidates, effort.rounds)
        seconds_of[f"n{count}"] = seconds["ours"]
        if count <= MOST_PUBLISHED:
            ratios[f"n{count}"] = seconds["published"] / seconds["ours"]
        if count in {4, 16}:
            rate = gemm_rate(512 if effort.is_smoke else 2048, effort.rounds)
            shares[f"n{count}"] = flop_bound(members) / rate / seconds["ours"]
    members = write_members(folder, 4, **size)
    grams = [full_grams(member) for member in members]
    with _without_onednn():
        seconds = median_seconds(
            {
                "ours": lambda: merge_ours(members, folder / "ours"),
                "published": lambda: _published(members, grams, folder),
            },
            effort.rounds,
        )
    return {
        "published_over_ours": ratios,
        "share_of_flop_bound": shares,
        "seconds": seconds_of,
        "published_over_ours_without_onednn": {"n4": seconds["published"] / seconds["ours"]},
    }


def measure_memory(folder: Path, effort: Effort) -> dict[str, float]:
    """Return the peak of resident memory above that after the imports, MB, each in a process of its own."""
    size = size_of(effort)
    found = {}
    for count in (2, 4, 8, 16):
        members = write_members(folder, count, **size)
        found[f"n{count}"] = peak_of(__file__, str(folder / "memory"), *map(str, members))
    return found


def peak_of(program: str, *arguments: str) -> float:
    """Run a program that calls `print_peak`, and return what it printed."""
    command = [sys.executable, program, *arguments]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - a file beside this one
    return float(json.loads(ran.stdout))


def print_peak(run: Callable[[], object]) -> None:
    """Print by how much a run raised the peak of this process's resident memory above what it began with, MB."""
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # what the libraries allocate at their first use
    before = _memory_mb("VmRSS")
    run()
    print(json.dumps(_memory_mb("VmHWM") - before))


def size_of(effort: Effort, *, layers: int = LAYERS) -> dict[str, int]:
    """Return the width and the number of layers that are measured."""
    return {"width": 48, "layers": 1} if effort.is_smoke else {"width": WIDTH, "layers": layers}


def measure_cold(folder: Path, effort: Effort) -> dict[str, float]:
    """Return the seconds of a merge of 4 whose files the page cache does not hold, over those of one that it holds."""
    size = size_of(effort)
    members = write_members(folder, 4, **size)

    def cold() -> None:
        for member in members:
            for path in member.iterdir():
                _drop_from_cache(path)
        merge_ours(members, folder / "ours")

    seconds = median_seconds({"warm": lambda: merge_ours(members, folder / "ours"), "cold": cold}, effort.rounds)
    return {"n4": seconds["cold"] / seconds["warm"]}


def _drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # only what is on the disk can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _published(members: list[Path], grams: list[dict[str, torch.Tensor]], folder: Path) -> None:
    models = [load_file(member / "model.safetensors") for member in members]
    merged = merge_published(models, grams, ALPHA)
    save_file({name: weight.contiguous() for name, weight in merged.items()}, folder / "published.safetensors")


@contextmanager
def _without_onednn() -> Iterator[None]:
    chosen = exact_products.cpu_route
    exact_products.cpu_route = lambda: "ieee"  # type: ignore[assignment] # for this measurement
    try:
        yield
    finally:
        exact_products.cpu_route = chosen


def _gram(width: int, generator: torch.Generator) -> torch.Tensor:
    rows = torch.randn(2 * width, width, generator=generator)
    flat = packing.packed_zeros(width)
    packing.accumulate_rows(flat, rows)
    return flat


def _save_statistics(grams: dict[str, torch.Tensor], metadata: StatisticsMetadata, path: Path) -> None:
    from gramfuse.measuring.statistics import Tap  # noqa: PLC0415 - only where members are written
    from gramfuse.measuring.statistics_io import write_statistics  # noqa: PLC0415

    write_statistics(path, metadata, (Tap(tap, grams[gram_tensor_name(tap.name)]) for tap in metadata.taps))


def _taps(member: Path) -> tuple[TapInfo, ...]:
    from gramfuse.contributing.loading import open_statistics_file  # noqa: PLC0415 - not timed

    return open_statistics_file(member / "statistics.safetensors").metadata.taps


def _memory_mb(kind: str) -> float:
    """Return VmRSS or VmHWM, its peak, of this process. `getrusage` would begin with the parent's peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    folder, *paths = map(Path, sys.argv[1:])
    print_peak(lambda: merge_ours(paths, folder))
