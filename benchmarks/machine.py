"""What this machine does: products, disk and hashing, measured in the run that they explain."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch
from processor import describe_processor
from timing import Effort, median_seconds

from gramfuse_shared.merging.exact_products import cpu_route, exact_products

_MIB = 2**20


def gemm_rate(size: int, rounds: int) -> float:
    """Return FLOP/s of an fp32 product of square matrices, by the route that the product chooses."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    with exact_products():
        seconds = median_seconds({"product": lambda: torch.mm(left, right, out=out)}, rounds)["product"]
    return 2 * size**3 / seconds


def measure(folder: Path, effort: Effort) -> dict[str, Any]:
    """Measure fp32 products of 2048², writing with fsync, and SHA-256."""
    content = os.urandom((8 if effort.is_smoke else 256) * _MIB)

    def write() -> None:
        with (folder / "rate").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (folder / "rate").unlink()

    seconds = median_seconds({"write": write, "hash": lambda: hashlib.sha256(content).digest()}, effort.rounds)
    return {
        **describe_processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "products": cpu_route(),
        "gemm_gflops": gemm_rate(512 if effort.is_smoke else 2048, effort.rounds) / 1e9,
        "disk_write_mb_per_second": len(content) / seconds["write"] / 1e6,
        "sha256_mb_per_second": len(content) / seconds["hash"] / 1e6,
    }
