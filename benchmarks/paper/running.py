"""One experiment with one seed, from training to scores; the tables are made of these."""

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from benchmarks.paper import REPOSITORY
from benchmarks.paper.bases import build_base
from benchmarks.paper.catalogue import task_named
from benchmarks.paper.consortium import Consortium, consortium
from benchmarks.paper.corpora import Example, write_examples
from benchmarks.paper.experiments import Experiment, Texts
from benchmarks.paper.merges import Measure, Merge
from benchmarks.paper.predictions import Predictions
from benchmarks.paper.rows import Row, Rows, best_row, mean_row, mean_scores
from benchmarks.paper.tasks import Task
from benchmarks.paper.training import Training, train_all
from cache import Cache

import gramfuse

BATCH: Final = 32
TOGETHER: Final = "together"
IN, OUT = "in_domain", "out_of_domain"


@dataclass(frozen=True, slots=True)
class Trained:
    """One seed's texts and models: each organization's own, and one that was trained on everybody's."""

    base: Path
    members: Mapping[str, Texts]
    unseen: Mapping[str, Sequence[Example]]
    models: Mapping[str, Path]
    together: Path


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things are, how many models are trained at once, and on what all computes."""

    folder: Path
    at_once: int
    device: str = "cpu"

    @property
    def cache(self) -> Cache:
        """What is kept between runs."""
        return Cache(self.folder / "cache")

    @property
    def service(self) -> Path:
        """Where the server, the clients and the merged models live for one experiment."""
        return self.folder / "service"


def run(experiment: Experiment, seed: int, bench: Bench) -> Rows:
    """Return the scores of every row, and keep them; what an earlier run of the same code kept is read."""
    key = f"rows-{experiment.name}-{seed}-{bench.device}-{_sources_digest(experiment)}"
    kept = bench.cache.kept(key) / "rows.json"
    if not kept.exists():
        rows = _run(experiment, seed, bench)
        file = bench.cache.begin(key) / kept.name
        file.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
        bench.cache.finish(key)
    found: Rows = json.loads(kept.read_text(encoding="utf-8"))
    return found


def train(experiment: Experiment, seed: int, bench: Bench) -> Trained:
    """Train whatever is not kept."""
    task, members = task_named(experiment.task), experiment.members(seed)
    base = bench.folder / "bases" / f"{experiment.task}-{experiment.source.replace('/', '--')}-{seed}"
    if not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        build_base(task, experiment.source, base, seed=seed)
    drawn = range(1000 * seed, 1000 * seed + len(members)) if experiment.own_heads else [None] * len(members)
    heads = dict(zip(members, drawn, strict=True))
    everything = {name: texts.train for name, texts in members.items()}
    everything[TOGETHER] = [example for examples in everything.values() for example in examples]
    trainings = []
    for name, examples in everything.items():
        file = bench.folder / "texts" / experiment.name / str(seed) / f"{name}.jsonl"
        write_examples(file, examples)
        settings = (experiment.epochs, experiment.learning_rate, seed, heads.get(name), bench.device)
        trainings.append(Training(experiment.task, base, file, *settings))
    *own, together = train_all(trainings, bench.cache, at_once=bench.at_once)
    return Trained(base, members, experiment.unseen(), dict(zip(members, own, strict=True)), together)


def _run(experiment: Experiment, seed: int, bench: Bench) -> Rows:
    trained = train(experiment, seed, bench)
    judge = Judge(Predictions(task_named(experiment.task), bench.cache, bench.device), trained)
    rows = judge.unmerged() if experiment.references else {}  # before the service runs: an idle worker looks for work
    scratch = bench.service
    shutil.rmtree(scratch, ignore_errors=True)
    with consortium(scratch, list(trained.models)) as everybody:
        workshop = Workshop(experiment, seed, bench, trained, everybody)
        if experiment.pairs:
            rows |= judge.paired(experiment.merges, workshop)
        else:
            rows |= {merge.row: judge.merged(merge, workshop) for merge in experiment.merges}
    shutil.rmtree(scratch)
    return rows


class Workshop:
    """Makes merged models, each through a job of the service; a project for each way to measure."""

    def __init__(
        self, experiment: Experiment, seed: int, bench: Bench, trained: Trained, everybody: Consortium
    ) -> None:
        self._task: Task = task_named(experiment.task)
        self._seed, self._bench, self._trained, self._everybody = seed, bench, trained, everybody
        self._folder, self._projects = bench.service / "models", dict[Measure, str]()
        self.names = list(trained.models)

    def merged(self, recipe: gramfuse.Recipe, measure: Measure) -> Path:
        """The model that a recipe makes of what everybody contributed."""
        if measure not in self._projects:
            self._projects[measure] = self._contribute(measure)
        folder = self._folder / measure.slug
        folder.mkdir(parents=True, exist_ok=True)
        return self._everybody.merge(self._projects[measure], recipe, folder)

    def _contribute(self, measure: Measure) -> str:
        base, models = self._trained.base, self._trained.models
        project = self._everybody.begin(measure.slug, base)
        files = {name: self._measure(name, model, measure) for name, model in models.items()}
        self._everybody.push(project, base, models, files, measure.kind)
        return project

    def _measure(self, name: str, model: Path, measure: Measure) -> Path:
        """Collect on the texts that the model was tuned on, or on some of them, drawn from the seed."""
        device, cache = self._bench.device, self._bench.cache
        key = f"statistics-{model.name}-{measure.slug}-{self._seed}-{device}-{_digest_of(MEASURING)}"
        kept = cache.kept(key) / f"{measure.kind}.safetensors"
        if not kept.exists():
            texts = self._task.texts(self._trained.members[name].train)
            if measure.batches is not None:
                random.Random(self._seed).shuffle(texts)
                texts = texts[: BATCH * measure.batches]
            settings = {"batch_size": BATCH, "device": device, "seed": self._seed}
            measured = (
                gramfuse.collect_fisher(model, texts, **settings)
                if measure.kind == "fisher"
                else gramfuse.collect(model, texts, weighting=measure.weighting, **settings)
            )
            measured.save(cache.begin(key) / kept.name)
            cache.finish(key)
        return kept


class Judge:
    """Turns models into rows: in-domain is the mean over the members' test sets, out-of-domain over the others'."""

    def __init__(self, predictions: Predictions, trained: Trained) -> None:
        self._predictions, self._trained = predictions, trained

    def unmerged(self) -> Rows:
        """The rows that need no merge."""
        models = list(self._trained.models.values())
        rows = {
            "Avg.": mean_row([self._row([model]) for model in models]),
            "Best": best_row([self._row([model]) for model in models]),
            "Ensemble": self._row(models),
            "Multi-task": self._row([self._trained.together]),
        }
        tests = [texts.test for texts in self._trained.members.values()]
        if any(test != tests[0] for test in tests):
            own = [self._scores([model], [test]) for model, test in zip(models, tests, strict=True)]
            rows["Domain-specific"] = {IN: mean_scores(own)}
        return rows

    def merged(self, merge: Merge, workshop: Workshop, among: Sequence[str] = ()) -> Row:
        """A merge's row; of several recipes the one with the best mean F1 on the members' dev sets."""
        recipes = merge.recipes_of(workshop.names)
        models = [workshop.merged(recipe, merge.measure) for recipe in recipes]
        best = models[0]
        if len(models) > 1:
            devs = [texts.dev for texts in self._trained.members.values()]
            on_dev = [self._scores([model], devs)["f1"] for model in models]
            best = models[on_dev.index(max(on_dev))]
            chosen = recipes[models.index(best)].parameters.lambda_
            print(f"{merge.row}: lambda {chosen} of dev F1 {[round(score, 1) for score in on_dev]}", flush=True)
        return self._row([best], among)

    def paired(self, merges: Sequence[Merge], workshop: Workshop) -> Rows:
        """Means over all pairs; in-domain are the pair's two domains alone."""
        found: dict[str, list[Row]] = {}
        for pair in itertools.combinations(range(len(workshop.names)), 2):
            among = [workshop.names[position] for position in pair]
            singles = [self._row([self._trained.models[name]], among) for name in among]
            found.setdefault("Avg.", []).append(mean_row(singles))
            found.setdefault("Best", []).append(best_row(singles))
            for merge in merges:
                row = self.merged(Merge(merge.row, merge.recipes, merge.measure, pair), workshop, among)
                found.setdefault(merge.row, []).append(row)
        return {row: mean_row(rows) for row, rows in found.items()}

    def _row(self, models: Sequence[Path], among: Sequence[str] = ()) -> Row:
        members = self._trained.members
        row = {IN: self._scores(models, [members[name].test for name in among or members])}
        if self._trained.unseen:
            row[OUT] = self._scores(models, list(self._trained.unseen.values()))
        return row

    def _scores(self, models: Sequence[Path], tests: Sequence[Sequence[Example]]) -> dict[str, float]:
        return mean_scores([self._predictions.scores(models, test) for test in tests])


PROGRAMS: Final = (
    REPOSITORY / "shared",
    REPOSITORY / "client",
    REPOSITORY / "server",
    *(
        REPOSITORY / "benchmarks" / "paper" / f"{name}.py"
        for name in ("running", "rows", "merges", "experiments", "consortium")
    ),
    *(REPOSITORY / "benchmarks" / "paper" / f"{name}.py" for name in ("entities", "emotions", "predictions")),
)
MEASURING: Final = (REPOSITORY / "client" / "gramfuse" / "measuring",)


def _sources_digest(experiment: Experiment) -> str:
    """Identify what decides an experiment's scores: its definition and the sources, the service's among them."""
    return hashlib.sha256(f"{experiment!r} {torch.__version__} {_digest_of(PROGRAMS)}".encode()).hexdigest()[:16]


def _digest_of(places: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
