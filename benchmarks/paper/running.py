"""One experiment with one seed, from training to scores; the tables are made of these."""

import hashlib
import json
import shutil

import torch
from benchmarks.paper.consortium import consortium
from benchmarks.paper.experiments import Experiment
from benchmarks.paper.judging import Judge, PrivateHeadsJudge
from benchmarks.paper.predictions import Predictions
from benchmarks.paper.rows import Rows
from benchmarks.paper.sources import PROGRAMS, digest_of
from benchmarks.paper.trained import Bench, train
from benchmarks.paper.workshop import Workshop


def run(experiment: Experiment, seed: int, bench: Bench) -> Rows:
    """Return the scores of every row, and keep them; what an earlier run of the same code kept is read."""
    decisive = f"{experiment!r} {torch.__version__} {bench.device} {digest_of(PROGRAMS)}"
    key = f"rows-{experiment.name}-{seed}-{hashlib.sha256(decisive.encode()).hexdigest()[:16]}"
    kept = bench.cache.kept(key) / "rows.json"
    if not kept.exists():
        rows = _run(experiment, seed, bench)
        file = bench.cache.begin(key) / kept.name
        file.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
        bench.cache.finish(key)
    found: Rows = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _run(experiment: Experiment, seed: int, bench: Bench) -> Rows:
    trained = train(experiment, seed, bench)
    judges = PrivateHeadsJudge if experiment.private_heads else Judge
    judge = judges(Predictions(bench.cache, bench.device), trained)
    rows = judge.unmerged() if experiment.references else {}  # before the service runs: an idle worker looks for work
    shutil.rmtree(bench.service, ignore_errors=True)
    with consortium(bench.service, list(trained.models)) as everybody:
        workshop = Workshop(experiment, seed, bench, trained, everybody)
        if experiment.pairs:
            rows |= judge.paired(experiment.merges, workshop)
        elif experiment.greedy:
            (merge,) = experiment.merges
            rows |= judge.grown(merge, workshop)
        else:
            rows |= {merge.row: judge.merged(merge, workshop) for merge in experiment.merges}
    shutil.rmtree(bench.service)
    return rows
