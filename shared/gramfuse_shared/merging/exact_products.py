"""Compute float32 products as such, by the fastest route that this machine has.

A TF32 or bfloat16 setting of the surrounding program would cost three digits. On CPUs there are two routes: MKL, and
oneDNN, to which torch sends products when it may use bfloat16. Where the CPU has no bfloat16 units these stay float32;
where it has (AMX), they would be bfloat16, so that is tried once. MKL leaves AMD's cores half idle, so there the other
route is taken. Nothing is timed: the two differ in last bits, and a busy machine must not merge to other bits.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import torch

Route = Literal["ieee", "bf16"]

MOST_ERROR: Final = 2e-6
"""Of a product of 512 × 512 matrices against float64, ‖·‖_F; float32 has 4e-7, bfloat16 2e-3."""

_SIZE: Final = 512
_SLOW_WITH_MKL: Final = "AuthenticAMD"
_CPU_INFO: Final = Path("/proc/cpuinfo")


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 products of this process exactly within the block; then as before."""
    cuda, cpu = torch.backends.cuda.matmul, _onednn()
    before = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision, cpu.fp32_precision = "ieee", cpu_route()
    try:
        yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before


@cache
def cpu_route() -> Route:
    """Return the setting of oneDNN under which float32 products are exact and fast here: the same at every call."""
    return "bf16" if _vendor() == _SLOW_WITH_MKL and _is_exact("bf16") else "ieee"


def _is_exact(route: Route) -> bool:
    onednn = _onednn()
    before = onednn.fp32_precision
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    expected = left.double() @ right.double()
    try:
        onednn.fp32_precision = route
        error = torch.linalg.norm((left @ right).double() - expected) / torch.linalg.norm(expected)
    finally:
        onednn.fp32_precision = before
    return float(error) < MOST_ERROR


def _vendor() -> str:
    """Return the CPU's maker as it names itself; where that is not known, whatever the platform says of the CPU."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(found, platform.processor().rpartition(" ")[2])


def _onednn() -> Any:  # noqa: ANN401 - the module replaces itself by an object that has no type
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
