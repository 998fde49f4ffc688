"""Run the experiments, as far as they are not kept from earlier runs, and write results, tables and picture.

    python -m benchmarks.paper [--smoke] [--only NAME] [--rows NAME …] [--seeds 1 2 3] [--folder FOLDER] [--train-only]

Interrupted, it goes on where it was. What an experiment of some seeds yields replaces what stood of it; settings of
experiments that did not run stay.
"""

import argparse
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.paper import REPOSITORY
from benchmarks.paper.experiments import FULL, SEEDS, SMOKE, SMOKE_SEEDS
from benchmarks.paper.page import write_page
from benchmarks.paper.plots import draw
from benchmarks.paper.results import Results, summarize
from benchmarks.paper.running import run
from benchmarks.paper.trained import Bench, train
from transformers.utils import logging

RESULTS: Final = REPOSITORY / "benchmarks" / "results" / "paper.json"
PAGE: Final = REPOSITORY / "docs" / "results.md"
PICTURE: Final = REPOSITORY / "docs" / "results.svg"
FOLDER: Final = REPOSITORY / ".paper"


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Hold the folder, so that two runs do not train into one cache.

    Raises:
        BlockingIOError: another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder.resolve()


def main() -> None:
    """Parse, run, write."""
    os.environ |= {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "TOKENIZERS_PARALLELISM": "false"}
    logging.set_verbosity_error()  # a new head is meant to be new
    logging.disable_progress_bar()
    names = [experiment.name for experiment in FULL]
    parser = argparse.ArgumentParser(description="Reproduce the shape of the RegMean paper's tables.")
    parser.add_argument("--smoke", action="store_true", help="a handful of sentences: does it run at all?")
    parser.add_argument("--only", action="append", default=[], choices=names, help="run this, keep the others' results")
    parser.add_argument("--rows", nargs="+", help="these alone of the rows that are merges or Multi-task")
    parser.add_argument("--seeds", type=int, nargs="+", help="default 1 2 3")
    parser.add_argument("--source", help="another encoder, by its name on a hub or its folder")
    parser.add_argument("--domains", nargs="+", help="other domains: data sets by NAME[:CONFIGURATION], or folders")
    parser.add_argument("--held-out", nargs="*", help="with --domains: those that nobody trains on")
    parser.add_argument("--epochs", type=int, help="instead of the experiments' own")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where trained models and scores are kept")
    parser.add_argument("--at-once", type=int, default=2, help="models trained at a time, one thread each")
    parser.add_argument("--device", default="cpu", help="on what models are trained, measured and asked, say cuda")
    parser.add_argument("--train-only", action="store_true", help="fill the cache of trained models and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go, as JSON")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the picture goes, as SVG")
    parser.add_argument("--page", type=Path, default=PAGE, help="whose tables are replaced; a smoke run has no page")
    arguments = parser.parse_args()
    experiments = [
        one.of_rows(arguments.rows).with_others(
            arguments.source, arguments.domains, arguments.held_out, arguments.epochs
        )
        for one in (SMOKE if arguments.smoke else FULL)
        if one.name in (arguments.only or names)
    ]
    seeds = arguments.seeds or (SMOKE_SEEDS if arguments.smoke else SEEDS)
    results: Results = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    with held(arguments.folder) as folder:
        bench = Bench(folder, arguments.at_once, arguments.device)
        for experiment in experiments:
            tables = {}
            for seed in seeds:
                print(f"{experiment.name}, seed {seed}", flush=True)
                began = time.monotonic()
                if arguments.train_only:
                    train(experiment, seed, bench)
                else:
                    tables[seed] = run(experiment, seed, bench)
                print(f"{experiment.name}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
            if tables:
                results[experiment.setting] = summarize(tables)
                write(results, arguments.out, arguments.picture, None if arguments.smoke else arguments.page)


def write(results: Results, out: Path, picture: Path, page: Path | None) -> None:
    """Write what is known so far: after each experiment, since the next may take an hour."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(results, picture)
    if page is not None:
        write_page(results, page)
    print(f"written: {out}", flush=True)


if __name__ == "__main__":
    main()
