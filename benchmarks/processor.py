"""Which processor a measurement was made on."""

import os
import platform
from pathlib import Path
from typing import Any


def describe_processor() -> dict[str, Any]:
    """Name the processor, and count its cores."""
    return {"cpu": _name(), "cores": os.cpu_count()}


def _name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
