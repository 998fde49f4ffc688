"""Compute float32 products as such, by the fastest route that this machine has.

A TF32 or bfloat16 setting of the surrounding program would cost three digits. On CPUs there are two routes: MKL, and
oneDNN, to which torch sends products when it may use bfloat16. Where the CPU has no bfloat16 units these stay float32
and leave MKL behind by up to a factor of two (AMD); where it has (AMX), they would be bfloat16. So it is tried once.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Literal

import torch

Route = Literal["ieee", "bf16"]

MOST_ERROR: Final = 2e-6
"""Of a product of 512 × 512 matrices against float64, ‖·‖_F; float32 has 4e-7, bfloat16 2e-3."""

_SIZE: Final = 512
_REPETITIONS: Final = 7
_WORTHWHILE: Final = 0.9
"""Of MKL's time: what oneDNN may take at most to be chosen."""


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
    """Return the setting of oneDNN under which float32 products are exact and fastest here; tried at the first call."""
    onednn = _onednn()
    before = onednn.fp32_precision
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    expected = left.double() @ right.double()
    seconds: dict[Route, float] = {}
    routes: tuple[Route, ...] = ("ieee", "bf16")
    try:
        for route in routes:
            onednn.fp32_precision = route
            error = torch.linalg.norm((left @ right).double() - expected) / torch.linalg.norm(expected)
            if float(error) < MOST_ERROR:
                seconds[route] = _time(lambda: left @ right)
    finally:
        onednn.fp32_precision = before
    plain = seconds.get("ieee", 0.0)
    return "bf16" if seconds.get("bf16", plain) < _WORTHWHILE * plain else "ieee"


def _time(product: Callable[[], torch.Tensor]) -> float:
    """Return the seconds of the fastest of some repetitions."""
    fastest = float("inf")
    for _ in range(_REPETITIONS):
        began = time.perf_counter()
        product()
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def _onednn() -> Any:  # noqa: ANN401 - the module replaces itself by an object that has no type
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
