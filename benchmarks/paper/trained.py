"""The organizations of one seed: their texts, the base, and each one's fine-tuned model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.paper.bases import build_base
from benchmarks.paper.catalogue import task_named
from benchmarks.paper.examples import Example, write_examples
from benchmarks.paper.experiments import Experiment, Texts
from benchmarks.paper.training import Training, train_all
from cache import Cache

TOGETHER: Final = "together"


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


@dataclass(frozen=True, slots=True)
class Trained:
    """One seed's texts and models: each organization's own, and one that was trained on everybody's.

    `base` is what the project merges around. Without the row that needs it there is no model of everybody's texts.
    """

    base: Path
    members: Mapping[str, Texts]
    unseen: Mapping[str, Sequence[Example]]
    models: Mapping[str, Path]
    together: Path | None


def train(experiment: Experiment, seed: int, bench: Bench) -> Trained:
    """Train whatever is not kept."""
    members = experiment.members(seed)
    trainings = prepare(experiment, members, seed, bench)
    folders = dict(zip(trainings, train_all(list(trainings.values()), bench.cache, at_once=bench.at_once), strict=True))
    base = next(iter(trainings.values())).base
    return Trained(base, members, experiment.unseen(), {name: folders[name] for name in members}, folders.get(TOGETHER))


def prepare(experiment: Experiment, members: Mapping[str, Texts], seed: int, bench: Bench) -> dict[str, Training]:
    """Write the bases and the texts; return how each organization trains, and who trains on everybody's texts."""
    drawn = range(1000 * seed, 1000 * seed + len(members)) if experiment.own_heads else [None] * len(members)
    heads = dict(zip(members, drawn, strict=True))
    everybody = dict(members)
    if experiment.multi_task:
        (task,) = {texts.task for texts in members.values()}
        everybody[TOGETHER] = Texts(task, [example for texts in members.values() for example in texts.train], [], [])
    trainings = {}
    for name, texts in everybody.items():
        base = _base(texts.task, experiment.source, seed, bench)
        file = bench.folder / "texts" / experiment.name / str(seed) / f"{name}.jsonl"
        write_examples(file, texts.train)
        settings = (experiment.epochs, experiment.learning_rate, seed, heads.get(name), bench.device)
        trainings[name] = Training(texts.task, base, file, *settings)
    return trainings


def _base(task: str, source: str, seed: int, bench: Bench) -> Path:
    base = bench.folder / "bases" / f"{task}-{source.replace('/', '--')}-{seed}"
    if not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        build_base(task_named(task), source, base, seed=seed)
    return base
