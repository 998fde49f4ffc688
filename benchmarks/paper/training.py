"""Train models, several at a time, each once: what was trained before is kept by everything that decides it."""

import itertools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.paper.catalogue import task_named
from benchmarks.paper.examples import read_examples
from benchmarks.paper.parents import end_with_parent
from cache import Cache, training_key
from transformers import AutoTokenizer
from transformers.utils import logging

from gramfuse_shared.merging.exact_products import exact_products


@dataclass(frozen=True, slots=True)
class Training:
    """One model to be trained: the task's name, a base, a file of examples, and what decides the run beside them.

    `head_seed` draws a head of the organization's own; None keeps the base's.
    """

    task: str
    base: Path
    examples: Path
    epochs: int
    learning_rate: float
    seed: int
    head_seed: int | None = None
    device: str = "cpu"

    @property
    def key(self) -> str:
        """The name under which the trained model is kept."""
        options = [self.task, *map(str, (self.epochs, self.learning_rate, self.seed, self.head_seed)), self.device]
        return training_key(self.base, self.examples, task_named(self.task).programs, options)


def train_all(trainings: Sequence[Training], cache: Cache, *, at_once: int) -> list[Path]:
    """Return the folder of each trained model; train those that are missing, `at_once` at a time, one thread each."""
    keys = [training.key for training in trainings]
    missing = {key: one for key, one in zip(keys, trainings, strict=True) if not cache.kept(key).exists()}
    if at_once == 1:
        for key, training in missing.items():
            _train(training, key, cache)
    elif missing:
        spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(min(at_once, len(missing)), mp_context=spawn, initializer=end_with_parent) as pool:
            list(pool.map(_train_alone, missing.values(), missing, itertools.repeat(cache)))
    return [cache.kept(key) for key in keys]


def _train_alone(training: Training, key: str, cache: Cache) -> None:
    torch.set_num_threads(1)  # beside others
    logging.disable_progress_bar()
    _train(training, key, cache)


def _train(training: Training, key: str, cache: Cache) -> None:
    task = task_named(training.task)
    model = task.architecture.from_pretrained(training.base)
    tokenizer = AutoTokenizer.from_pretrained(training.base)
    if training.head_seed is not None:
        torch.manual_seed(training.head_seed)
        with torch.no_grad():
            model.classifier.weight.normal_(0.0, model.config.initializer_range)
            model.classifier.bias.zero_()
    model.to(training.device)
    examples = read_examples(training.examples)
    with exact_products():
        task.finetune(
            model,
            tokenizer,
            examples,
            epochs=training.epochs,
            learning_rate=training.learning_rate,
            seed=training.seed,
        )
    target = cache.begin(key)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    cache.finish(key)
    print(f"trained {key}", flush=True)
