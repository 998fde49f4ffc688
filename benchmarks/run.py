"""Measure the product against the published algorithm on this machine; print tables, write the results and the picture.

    PYTHONPATH=tests python benchmarks/run.py [--smoke] [--only KEY] [--out FILE] [--picture FILE]

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
import masking
import merging
import object_store
import plots
import report
import sharing
import sizes
import startup
import summing
import torch
import transfer
from rich.console import Console
from timing import Effort, threads

RESULTS = Path(__file__).parent / "results" / "latest.json"
PICTURE = Path(__file__).parents[1] / "docs" / "performance.svg"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- measured: written by `make bench` -->", "<!-- end of measured -->"


def sections(folder: Path, effort: Effort) -> dict[str, Callable[[], Any]]:
    """What is measured, by the dotted key under which it stands in the results."""
    alone = Effort(rounds=min(3, effort.rounds), is_smoke=effort.is_smoke)

    def one_thread() -> dict[str, Any]:
        with threads(1):
            return {
                "gemm_gflops": machine.gemm_rate(512 if effort.is_smoke else 2048, alone.rounds) / 1e9,
                "collect": collecting.measure(alone),
                "merge": merging.measure(folder, alone),
            }

    return {
        "machine": lambda: machine.measure(folder, effort),
        "collect": lambda: collecting.measure(effort),
        "merge": lambda: merging.measure(folder, effort),
        "merge.working_set_mb": lambda: merging.measure_memory(folder, effort),
        "merge.working_set_mb_s3": lambda: object_store.measure_memory(folder, effort),
        "merge.cold_over_warm": lambda: merging.measure_cold(folder, effort),
        "error": lambda: accuracy.measure(effort),
        "statistics.published_over_ours_bytes": lambda: sizes.measure(folder / "s", effort),
        "transfer": lambda: transfer.measure(folder / "t", effort),
        "api.start_seconds": lambda: startup.measure(folder / "a", effort),
        "secure": lambda: masking.measure(effort),
        "secure.sum": lambda: summing.measure(folder / "u", effort),
        "workers": lambda: sharing.measure(folder / "w", effort),
        "growth": lambda: plots.measure(folder, effort),
        "one_thread": one_thread,
    }


def measure(folder: Path, effort: Effort, results: dict[str, Any], only: list[str], console: Console) -> None:
    """Measure all sections, or some of them anew, into the results; docs/performance.md explains their keys."""
    results |= {"date": f"{datetime.now(tz=UTC):%Y-%m-%d}", "rounds": effort.rounds}
    with threads(min(2, os.cpu_count() or 1)):
        for key, run in sections(folder, effort).items():
            if only and key not in only:
                continue
            console.print(f"measuring {key} …")
            *path, last = key.split(".")
            place = results
            for step in path:
                place = place.setdefault(step, {})
            found = run()
            place[last] = place.get(last, {}) | found if isinstance(found, dict) else found


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
    parser.add_argument("--only", action="append", default=[], metavar="KEY", help="measure this again, keep the rest")
    arguments = parser.parse_args()
    console = Console()
    effort = Effort(rounds=1, is_smoke=True) if arguments.smoke else Effort()
    torch.manual_seed(0)
    with TemporaryDirectory(prefix="gramfuse-bench-") as folder:
        for part in ("s", "t", "a", "u", "w"):
            (Path(folder) / part).mkdir()
        results = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.only else {}
        measure(Path(folder), effort, results, arguments.only, console)
    report.show(results, console)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plots.draw(results["growth"], arguments.picture)
    if not arguments.smoke:
        write_page(results)
    console.print(f"written: {arguments.out}, {arguments.picture}")


if __name__ == "__main__":
    main()
