"""One experiment with one seed, from training to scores; the tables are made of these."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from benchmarks.paper.consortium import consortium
from benchmarks.paper.experiments import MULTI_TASK, Experiment
from benchmarks.paper.judging import Judge, PrivateHeadsJudge
from benchmarks.paper.predictions import Predictions
from benchmarks.paper.rows import Rows
from benchmarks.paper.sources import PROGRAMS, digest_of
from benchmarks.paper.trained import Bench, Trained, train
from benchmarks.paper.workshop import Workshop


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are made, and kept, at once; `decided_by` says what decides them beside the experiment's texts."""

    decided_by: str
    make: Callable[[Judge, Workshop], Rows]


def run(experiment: Experiment, seed: int, bench: Bench) -> Rows:
    """Return the scores of every row, each kept as soon as it is there; what the same code kept before is read."""
    rows, missing = dict[str, Rows](), list[Part]()
    parts = list(parts_of(experiment))
    for part in parts:
        file = bench.cache.kept(_key(experiment, part, seed, bench)) / "rows.json"
        if file.exists():
            rows[part.decided_by] = json.loads(file.read_text(encoding="utf-8"))
        else:
            missing.append(part)
    if missing:
        for part, made in _make(experiment, missing, seed, bench):
            key = _key(experiment, part, seed, bench)
            file = bench.cache.begin(key) / "rows.json"
            file.write_text(json.dumps(made, indent=2, ensure_ascii=False), encoding="utf-8")
            bench.cache.finish(key)
            rows[part.decided_by] = made
            print(f"{experiment.name}, seed {seed}: {', '.join(made)}", flush=True)
    return {row: scores for part in parts for row, scores in rows[part.decided_by].items()}


def parts_of(experiment: Experiment) -> Iterator[Part]:
    """Yield the parts of an experiment's table: those rows that need no merge, multi-task, each merge by itself."""
    if experiment.references:
        yield Part("references", lambda judge, _: judge.unmerged())
    if experiment.multi_task:
        yield Part(MULTI_TASK, lambda judge, _: judge.multi_task())
    if experiment.pairs:
        yield Part(f"pairs {experiment.merges}", lambda judge, shop: judge.paired(experiment.merges, shop))
        return
    for merge in experiment.merges:
        if experiment.greedy:
            yield Part(f"greedy {merge}", lambda judge, shop, merge=merge: judge.grown(merge, shop))
        else:
            yield Part(f"{merge}", lambda judge, shop, merge=merge: {merge.row: judge.merged(merge, shop)})


def _key(experiment: Experiment, part: Part, seed: int, bench: Bench) -> str:
    texts = replace(experiment, merges=(), multi_task=False)
    decisive = f"{texts!r} {part.decided_by} {torch.__version__} {bench.device} {digest_of(PROGRAMS)}"
    return f"rows-{experiment.name}-{seed}-{hashlib.sha256(decisive.encode()).hexdigest()[:16]}"


def _make(experiment: Experiment, parts: Sequence[Part], seed: int, bench: Bench) -> Iterator[tuple[Part, Rows]]:
    trained = train(experiment, seed, bench)
    judges = PrivateHeadsJudge if experiment.private_heads else Judge
    judge = judges(Predictions(bench.cache, bench.device), trained)
    with _workshop(experiment, seed, bench, trained) as workshop:
        for part in parts:
            yield part, part.make(judge, workshop)


@contextmanager
def _workshop(experiment: Experiment, seed: int, bench: Bench, trained: Trained) -> Iterator[Workshop]:
    shutil.rmtree(bench.service, ignore_errors=True)
    with consortium(bench.service, list(trained.models)) as everybody:
        yield Workshop(experiment, seed, bench, trained, everybody)
    shutil.rmtree(bench.service)
