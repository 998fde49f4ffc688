"""Measure the product against the published algorithm on this machine; print tables, write the results and the picture.

    PYTHONPATH=tests python benchmarks/run.py [--smoke] [--out FILE] [--picture FILE]

Ratios are medians of interleaved rounds in this one run: they say how the two compare here, whatever else the machine
was doing. `make bench` takes about a quarter of an hour on two cores.
"""

import argparse
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accuracy
import collecting
import machine
import merging
import plots
import report
import sizes
import startup
import torch
import transfer
from rich.console import Console
from timing import Effort, threads

RESULTS = Path(__file__).parent / "results" / "latest.json"
PICTURE = Path(__file__).parents[1] / "docs" / "performance.svg"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- measured: written by `make bench` -->", "<!-- end of measured -->"


def measure(folder: Path, effort: Effort, console: Console) -> dict[str, Any]:
    """Measure everything; the keys are those that docs/performance.md explains."""

    def section(title: str, run: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it measures
        console.print(f"measuring {title} …")
        return run()

    both = min(2, os.cpu_count() or 1)
    with threads(both):
        results: dict[str, Any] = {
            "date": f"{datetime.now(tz=UTC):%Y-%m-%d}",
            "rounds": effort.rounds,
            "machine": section("the machine", lambda: machine.measure(folder, effort)),
            "collect": section("collecting", lambda: collecting.measure(effort)),
            "merge": section("merging", lambda: merging.measure(folder, effort)),
        }
        results["merge"]["working_set_mb"] = section("memory", lambda: merging.measure_memory(folder, effort))
        results |= {
            "error": section("errors", lambda: accuracy.measure(effort)),
            "statistics": {"published_over_ours_bytes": section("sizes", lambda: sizes.measure(folder / "s", effort))},
            "transfer": section("transfers", lambda: transfer.measure(folder / "t", effort)),
            "api": {"start_seconds": section("the API's start", lambda: startup.measure(folder / "a", effort))},
            "growth": section("how the cost grows", lambda: plots.measure(folder, effort)),
        }
    alone = Effort(rounds=min(3, effort.rounds), is_smoke=effort.is_smoke)
    with threads(1):
        results["one_thread"] = {
            "gemm_gflops": machine.gemm_rate(512 if effort.is_smoke else 2048, effort.rounds) / 1e9,
            "collect": section("collecting with one thread", lambda: collecting.measure(alone)),
            "merge": section("merging with one thread", lambda: merging.measure(folder, alone)),
        }
    return results


def write_page(results: dict[str, Any]) -> None:
    """Put the table of the results into docs/performance.md."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{report.markdown(results)}{END}{after}", encoding="utf-8")


def main() -> None:
    """Parse, measure, show, write."""
    parser = argparse.ArgumentParser(description="Measure gramfuse against the published algorithm.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round: does it run at all?")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go, as JSON")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the picture goes, as SVG")
    arguments = parser.parse_args()
    console = Console()
    effort = Effort(rounds=1, is_smoke=True) if arguments.smoke else Effort()
    torch.manual_seed(0)
    with TemporaryDirectory(prefix="gramfuse-bench-") as folder:
        for part in ("s", "t", "a"):
            (Path(folder) / part).mkdir()
        results = measure(Path(folder), effort, console)
    report.show(results, console)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plots.draw(results["growth"], arguments.picture)
    if not arguments.smoke:
        write_page(results)
    console.print(f"written: {arguments.out}, {arguments.picture}")


if __name__ == "__main__":
    main()
