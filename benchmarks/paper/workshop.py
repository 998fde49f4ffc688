"""What the service makes of the organizations' models: everybody contributes, then jobs are run."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.paper.catalogue import task_named
from benchmarks.paper.consortium import Consortium
from benchmarks.paper.examples import write_examples
from benchmarks.paper.experiments import Experiment
from benchmarks.paper.merges import Measure, Round
from benchmarks.paper.sources import MEASURING, digest_of
from benchmarks.paper.trained import Bench, Trained

import gramfuse
from gramfuse.answering.configuration import LocalTexts, Participation

BATCH: Final = 32


class Workshop:
    """Makes merged models, each through a job of the service; a project for each way to measure."""

    def __init__(
        self, experiment: Experiment, seed: int, bench: Bench, trained: Trained, everybody: Consortium
    ) -> None:
        self._experiment, self._seed, self._bench = experiment, seed, bench
        self._trained, self._everybody = trained, everybody
        self._folder, self._projects = bench.service / "models", dict[Measure, str]()
        self.names = list(trained.models)

    def merged(self, recipe: gramfuse.Recipe, measure: Measure, rounds: Sequence[Round] = ()) -> Path:
        """The model that a recipe makes of what everybody contributed, and the rounds of that."""
        project, folder = self._opened(measure)
        model = self._everybody.merge(project, recipe, folder)
        for kind in rounds:
            model = self._everybody.ask(project, model, kind, measure, self._participations(project))
        return model

    def grown(self, recipe: gramfuse.Recipe, measure: Measure) -> list[Path]:
        """The models of a greedy search, by ascending size of their cohorts."""
        project, folder = self._opened(measure)
        return self._everybody.grow(project, recipe, folder, self._participations(project))

    def personal(self, merged: Path, name: str) -> Path:
        """An organization's own head on a merged trunk."""
        return self._everybody.personal(name, merged, self._trained.models[name])

    def _opened(self, measure: Measure) -> tuple[str, Path]:
        """The project for a way to measure, with everybody's contributions, and the folder of its models."""
        if measure not in self._projects:
            self._projects[measure] = self._contribute(measure)
        folder = self._folder / measure.slug
        folder.mkdir(parents=True, exist_ok=True)
        return self._projects[measure], folder

    def _participations(self, project: str) -> dict[str, Participation]:
        """What each organization answers from: its own model, its training texts, its held-out ones."""
        folder, found = self._bench.service / "participants", {}
        for name, own in self._trained.members.items():
            train, dev = folder / f"{name}.train.jsonl", folder / f"{name}.dev.jsonl"
            write_examples(train, own.train)
            write_examples(dev, own.dev)
            found[name] = Participation(
                project=project,
                model=self._trained.models[name],
                measured=LocalTexts(texts=train),
                held_out=LocalTexts(texts=dev),
                folder=folder / name,
                batch_size=BATCH,
                device=self._bench.device,
                seed=self._seed,
            )
        return found

    def _contribute(self, measure: Measure) -> str:
        base, models = self._trained.base, self._trained.models
        project = self._everybody.begin(measure.slug, base, private_heads=self._experiment.private_heads)
        files = {name: self._measure(name, model, measure) for name, model in models.items()}
        self._everybody.push(project, base, models, files, measure.kind)
        return project

    def _measure(self, name: str, model: Path, measure: Measure) -> Path:
        """Collect on the texts that the model was tuned on, or on some of them, drawn from the seed."""
        device, cache = self._bench.device, self._bench.cache
        key = f"statistics-{model.name}-{measure.slug}-{self._seed}-{device}-{digest_of(MEASURING)}"
        kept = cache.kept(key) / f"{measure.kind}.safetensors"
        if not kept.exists():
            own = self._trained.members[name]
            texts = task_named(own.task).texts(own.train)
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
