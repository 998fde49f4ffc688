"""How long to train: the mean dev F1 of each organization's own model on its own domain, by epochs.

    python -m benchmarks.paper.epochs btc --epochs 2 3 4 6 8 [--seed 0] [--at-once 2] [--device cuda]

The seed is none of those that the tables are made of, and no test set is looked at.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.__main__ import FOLDER, held
from benchmarks.paper.catalogue import task_named
from benchmarks.paper.experiments import FULL
from benchmarks.paper.predictions import Predictions
from benchmarks.paper.trained import Bench, prepare
from benchmarks.paper.training import train_all


def main() -> None:
    """Parse, train, print a line for each number of epochs."""
    os.environ |= {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "TOKENIZERS_PARALLELISM": "false"}
    parser = argparse.ArgumentParser(description="Choose the epochs on dev sets.")
    parser.add_argument("experiment", choices=[experiment.name for experiment in FULL])
    parser.add_argument("--epochs", type=int, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    (chosen,) = [experiment for experiment in FULL if experiment.name == arguments.experiment]
    with held(arguments.folder) as folder:
        bench = Bench(folder, arguments.at_once, arguments.device)
        predictions = Predictions(bench.cache, bench.device)
        members = chosen.members(arguments.seed)
        trainings = []
        for epochs in arguments.epochs:
            alone = replace(chosen, epochs=epochs, multi_task=False)
            trainings += prepare(alone, members, arguments.seed, bench).values()
        models = iter(train_all(trainings, bench.cache, at_once=bench.at_once))
        for epochs in arguments.epochs:
            scores = [
                predictions.scores(task_named(texts.task), [next(models)], texts.dev)["f1"]
                for texts in members.values()
            ]
            mean = sum(scores) / len(scores)
            print(f"{epochs} epochs: {mean:.1f} of {[round(score, 1) for score in scores]}", flush=True)


if __name__ == "__main__":
    main()
