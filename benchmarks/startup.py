"""Seconds from the command to the API's first answer, in a fresh process."""

import time
from pathlib import Path
from statistics import median

from timing import Effort

from support.deployment import deployed


def measure(folder: Path, effort: Effort) -> float:
    """Start the API several times on one database; return the median."""
    seconds = []
    with deployed(folder) as deployment:
        for _ in range(1 if effort.is_smoke else effort.rounds):
            deployment.kill_api()
            began = time.perf_counter()
            deployment.start_api()
            seconds.append(time.perf_counter() - began)
    return median(seconds)
